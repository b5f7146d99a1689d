"""The loss along lines and steps."""
