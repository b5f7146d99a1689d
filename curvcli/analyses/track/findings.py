"""What `curvcli track` finds."""

from curvcli.analyses.shared.rules import Rule

BAD_CHECKPOINT = Rule("track.bad-checkpoint", "warning", "what reading the checkpoint raised")
NOT_CONVERGED = Rule(
    "track.not-converged",
    "warning",
    "products against --max-matvecs",
    remedy="raise --max-matvecs or --tol",
)
EDGE_ABOVE = Rule(
    "track.edge-above",
    "warning",
    "λ_max beyond 1.3 times the optimizer's limit: its steps grow on a quadratic",
)
EDGE_AT = Rule(
    "track.edge-at", "note", "λ_max within 30 % of the limit, the range that training monitors use"
)
LOSS_RISES = Rule(
    "track.loss-rises",
    "warning",
    "the last loss against the lowest, 1.5 times",
    remedy="lower the learning rate ('curvcli lr'), or go back to that checkpoint",
)
DIED = Rule(
    "track.died",
    "warning",
    "a quarter of the units more are dead than at the checkpoint before",
    remedy="go back to the checkpoint before, with a lower rate ('curvcli lr')",
)
STOPPED = Rule(
    "track.stopped",
    "warning",
    "parameters that move by less than 1e-7 of their size from one checkpoint to the next",
    remedy="'curvcli gradients' says whether gradients reach them",
)
