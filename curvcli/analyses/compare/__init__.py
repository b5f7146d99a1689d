"""What changed between two checkpoints, beyond the error of the figures."""
