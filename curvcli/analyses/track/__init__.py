"""Curvature over the checkpoints of a training run."""
