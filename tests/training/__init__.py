"""Training loops that are watched."""
