"""What kind of critical point the weights sit at."""
