"""What `curvcli landscape` finds."""

from curvcli.analyses.shared.rules import Rule

LOWER = Rule(
    "landscape.lower",
    "note",
    "the loss itself, on the same data, beyond rounding and three standard errors of the difference",
    remedy="'curvcli saddle' says whether a way down begins at the weights",
)
BARRIER = Rule(
    "landscape.barrier",
    "note",
    "the loss on the straight line between two checkpoints (Frankle et al. 2020)",
    threshold=0.0,
)
NONFINITE = Rule(
    "landscape.nonfinite",
    "warning",
    "a loss that is NaN or Inf",
    threshold=0.0,
    remedy="look nearer to the weights: --radius",
)
