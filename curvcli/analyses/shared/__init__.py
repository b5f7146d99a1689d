"""What several questions need."""
