"""What `curvcli density` finds."""

from curvcli.analyses.shared.rules import Rule

NOT_CONVERGED = Rule(
    "density.not-converged", "warning", "Wasserstein distance between probes against --tol"
)
