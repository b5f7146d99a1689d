"""What `curvcli jacobian` finds."""

from curvcli.analyses.shared.rules import Rule

# Above this the chain of layers does not multiply to the whole: rounding alone stays far below.
CHAIN_LIMIT = 1e-3
# Relative difference above which a layer is not what its unrolled copy computes.
UNROLL_LIMIT = 1e-3

NONFINITE = Rule(
    "jacobian.nonfinite",
    "error",
    "NaN and Inf among the products",
    threshold=0.0,
    finer="derivatives overflow; try --dtype float64",
)
NOT_CONVERGED = Rule(
    "jacobian.not-converged",
    "warning",
    "residuals against --tol",
    threshold=0.0,
    remedy="raise --max-matvecs or --tol",
)
ROUNDING = Rule(
    "jacobian.rounding",
    "warning",
    "residuals against --tol",
    threshold=0.0,
    finer="use --dtype float64",
)
KINKS = Rule("jacobian.kinks", "note", "the Jacobian at inputs moved by rounding", threshold=0.0)
SINGULAR = Rule(
    "jacobian.singular", "note", "smallest singular value against rounding", threshold=0.0
)
CHAIN = Rule(
    "jacobian.chain",
    "error",
    "the product of the layers' Jacobians against the whole",
    threshold=1e-3,
)
UNROLLED = Rule(
    "jacobian.unrolled",
    "warning",
    "a layer's own output against its equations, stepped",
    threshold=1e-3,
)
