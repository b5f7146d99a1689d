"""Whether a network can still learn something new: ranks of its features and weights, and units that are dead."""

from curvcli.errors import CurvError
from curvcli.objective.objective import Objective
from curvcli.operators.signals.ranks import feature_rank, weight_ranks
from curvcli.operators.surface.rollout import dead_units

# Entries of a weight whose singular values take less than a product with the Hessian.
_LARGEST = 1 << 18


def plasticity(objective: Objective) -> dict[str, float]:
    """By name; what the network does not have is left out."""
    try:
        known = {
            "plasticity.feature_rank": feature_rank(objective),
            "plasticity.dead_fraction": dead_units(objective).fraction,
        }
    except CurvError:
        known = {}
    found = {name: value for name, value in known.items() if value is not None}
    for layer, rank in weight_ranks(objective, _LARGEST).items():
        found[f"plasticity.weight_rank.{layer}"] = rank
    return found
