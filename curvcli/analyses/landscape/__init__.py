"""The loss along a line or over a plane through the weights."""
