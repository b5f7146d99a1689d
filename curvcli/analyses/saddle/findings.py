"""What `curvcli saddle` finds."""

from curvcli.analyses.shared.rules import Rule

STRICT = Rule(
    "saddle.strict",
    "warning",
    "a Ritz value below the floor proves negative curvature (Rayleigh-Ritz)",
)
MAXIMUM = Rule("saddle.maximum", "warning", "the reach of the spectrum lies below the floor")
UNCONFIRMED = Rule(
    "saddle.unconfirmed",
    "warning",
    "the loss along the escape direction",
    finer="use --dtype float64",
)
DEGENERATE = Rule("saddle.degenerate", "warning", "the loss along the flattest direction")
INCONCLUSIVE = Rule(
    "saddle.inconclusive",
    "note",
    "products until the reach clears the floor, by the rate of the last ones",
    threshold=0.0,
)
UNRESOLVED = Rule(
    "saddle.unresolved",
    "warning",
    "gradients at weights whose last digits are moved",
    finer="use --dtype float64",
)
AT_CHANCE = Rule(
    "saddle.at-chance",
    "warning",
    "the loss of the best constant predictor, with the same output for every sample",
    remedy="a dead network is flat everywhere, no minimum that was reached; 'curvcli gradients' says where",
)
