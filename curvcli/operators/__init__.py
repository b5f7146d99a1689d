"""Linear maps of the parameters that can only be multiplied with."""
