"""What `curvcli trace` finds."""

from curvcli.analyses.shared.rules import Rule

NOT_CONVERGED = Rule("trace.not-converged", "warning", "standard errors against --tol")
