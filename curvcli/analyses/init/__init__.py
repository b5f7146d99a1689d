"""A target file for a checkpoint."""
