"""L(θ) over frozen batches."""
