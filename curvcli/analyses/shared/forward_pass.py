"""The figures of one forward pass, in the form of answers."""

import math
from dataclasses import asdict
from typing import Any

import msgspec

from curvcli.analyses.shared.sanity import SanityInfo
from curvcli.objective.objective import Objective
from curvcli.operators.signals.sanity import sanity


def forward_pass(objective: Objective, select: list[str]) -> SanityInfo:
    """One pass over all batches; parameters that ``select`` leaves out count as trained."""
    frozen = [
        name
        for name, p in objective.model.named_parameters()
        # Those that --params leaves out are frozen by curvcli itself.
        if not p.requires_grad and p.is_floating_point() and not select
    ]
    return msgspec.convert(_finite({**asdict(sanity(objective)), "frozen": frozen}), SanityInfo)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
