"""Every answer that a target allows, on one page."""
