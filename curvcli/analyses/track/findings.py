"""What `curvcli track` finds."""

from curvcli.analyses.shared.rules import Rule

BAD_CHECKPOINT = Rule("track.bad-checkpoint", "warning", "what reading the checkpoint raised")
NOT_CONVERGED = Rule(
    "track.not-converged",
    "warning",
    "products against --max-matvecs",
    remedy="allow more --max-matvecs or --timeout, or a larger --tol",
)
SUSPICIOUS = Rule(
    "track.suspicious",
    "warning",
    "the inputs, outputs and loss of the last checkpoint, as 'curvcli gradients' judges them",
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
    remedy="held-out data: the network may overfit, stop there or add regularisation; training data: the learning "
    "rate may be too high ('curvcli lr')",
)
DIED = Rule(
    "track.died",
    "warning",
    "a quarter of the units more are dead than at the checkpoint before",
    remedy="go back to the checkpoint before, with a lower rate ('curvcli lr')",
)
RUN_DIED = Rule(
    "track.run-died",
    "error",
    "from there on not finite, or no better than a constant after having learned or with many more dead units",
)
AT_LIMIT_LONG = Rule(
    "track.edge-long",
    "note",
    "half of the checkpoints or more, and at least three, at the limit or above",
    threshold=0.5,
    remedy="steps oscillate along the sharpest direction: a lower rate or longer warm-up lets the loss fall there",
)
RANK_FALLS = Rule(
    "track.rank-falls",
    "warning",
    "effective rank below half of its highest: plasticity is lost (Lyle et al. 2023, Dohare et al. 2024)",
    threshold=0.5,
    remedy="lower the learning rate, add weight decay or normalisation, or reset dead units",
)
NOISE_SCALE = Rule(
    "track.noise-scale",
    "note",
    "ten times off the critical batch size tr Σ/|G|² (McCandlish et al. 2018)",
    threshold=10.0,
)
STOPPED = Rule(
    "track.stopped",
    "warning",
    "parameters, or all of them, that move by less than 1e-7 of their size from one checkpoint to the next",
)
