"""What `curvcli check` finds."""

from curvcli.analyses.shared.rules import Rule

VIOLATION = Rule("check.violation", "error", "a rule of the project")
UNDECIDED = Rule(
    "check.undecided", "warning", "the threshold lies within the interval of the figure"
)
ERROR = Rule("check.error", "error", "a figure that could not be had")
FINDINGS = {"violation": VIOLATION, "undecided": UNDECIDED, "error": ERROR}
"""By the decision of a rule."""
