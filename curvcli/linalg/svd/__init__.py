"""Singular values of many small maps at once."""
