"""What `curvcli hessian` finds."""

from curvcli.analyses.shared.rules import Rule

ROUNDING = Rule(
    "hessian.rounding",
    "warning",
    "residuals against --tol",
    remedy="pass a larger --tol",
    finer="use --dtype float64",
)
NOT_CONVERGED = Rule("hessian.not-converged", "warning", "residuals against --tol", threshold=0.0)
LAYERS_NOT_CONVERGED = Rule(
    "hessian.layers-not-converged",
    "warning",
    "residuals against --tol",
    threshold=0.0,
    remedy="raise --max-matvecs or --timeout",
    finer="use --dtype float64",
)
