"""Whether the gradient is that of the loss."""
