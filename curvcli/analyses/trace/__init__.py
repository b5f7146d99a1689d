"""Sums over the whole spectrum: trace, norm, effective dimension."""
