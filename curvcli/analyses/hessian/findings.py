"""What `curvcli hessian` finds."""

from curvcli.analyses.shared.rules import Rule

ROUNDING = Rule(
    "hessian.rounding",
    "warning",
    "residuals against --tol",
    remedy="use --dtype float64 or a larger --tol",
)
NOT_CONVERGED = Rule("hessian.not-converged", "warning", "residuals against --tol", threshold=0.0)
LAYERS_NOT_CONVERGED = Rule(
    "hessian.layers-not-converged",
    "warning",
    "residuals against --tol",
    threshold=0.0,
    remedy="raise --max-matvecs or --timeout, or use --dtype float64",
)
