"""The spectral density of a curvature matrix."""
