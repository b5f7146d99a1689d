"""What `curvcli lr` finds."""

from curvcli.analyses.shared.rules import Rule

NONE_WORKS = Rule(
    "lr.none-works",
    "warning",
    "short training runs at all rates tried",
    remedy="look for the cause by 'curvcli gradients' and 'curvcli backprop'",
)
BELOW_BOUND = Rule(
    "lr.below-bound",
    "note",
    "the limit from the curvature at the start holds on a quadratic only",
)
CHECKPOINT_RATE = Rule(
    "lr.checkpoint-rate",
    "warning",
    "the rate in the optimizer's state against the lowest that fails",
    remedy="lower it, or warm up",
)
