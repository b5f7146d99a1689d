"""Weights that no process holds as a whole: each has its share, and gathers a block's where that block is evaluated."""
