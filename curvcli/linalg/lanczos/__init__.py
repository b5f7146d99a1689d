"""Eigenvalues at the ends of a spectrum, with their certificates."""
