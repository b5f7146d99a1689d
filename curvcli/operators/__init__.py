"""Linear maps that can only be multiplied with, and what is measured on the way through a network."""
