"""What `curvcli info` finds."""

from curvcli.analyses.shared.rules import Rule

NONFINITE = Rule("info.nonfinite", "error", "entries that are NaN or Inf", threshold=0.0)
