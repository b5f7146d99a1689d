"""Curvature from inside a training loop, which is not disturbed."""
