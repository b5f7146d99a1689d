"""What `curvcli step` finds."""

from curvcli.analyses.shared.rules import Rule

SADDLE = Rule(
    "step.saddle", "note", "slope of a step along known negative curvature", threshold=0.0
)
