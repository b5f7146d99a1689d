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
    "λ_max beyond 1.3 · 2/lr: gradient descent diverges on a quadratic",
)
EDGE_AT = Rule(
    "track.edge-at", "note", "λ_max within 30 % of 2/lr, the range that training monitors use"
)
