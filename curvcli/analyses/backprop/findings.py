"""What `curvcli backprop` finds."""

from curvcli.analyses.shared.rules import Rule

IDENTITY = Rule("backprop.identity", "error", "∂L/∂W = δᵀx by hand, in float64")
SLOPE = Rule("backprop.slope", "error", "central differences of the loss, in float64")
