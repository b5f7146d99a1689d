"""curvcli: how the loss surface of a neural network bends, and how signals travel through it."""

__version__ = "0.1.0"
