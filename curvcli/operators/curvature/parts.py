"""The data cut into parts that are compared with each other."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from curvcli.objective.batch import Batch
from curvcli.objective.objective import Objective

if TYPE_CHECKING:
    from curvcli.operators.curvature.curvature import Curvature

# Parts a single batch is split into for the spread over batches.
PARTS = 8


class Part(NamedTuple):
    """What one part of the data contributes to products with K vectors."""

    weight: float
    """Its loss terms."""
    products_KN: Tensor
    """Its contribution to A V, without weight decay; the contributions of all parts add up."""


def parts_of(objective: Objective, groups: int = PARTS, share: int = 1) -> Sequence[Batch]:
    """The batches, or ``groups`` of samples of a single one.

    Args:
        objective: whose data it is.
        groups: of a single batch.
        share: of a single batch, one sample in so many (all, where that leaves less than one for each group).
    """
    if len(objective.batches) > 1 or not objective.splittable:
        return objective.batches
    (batch,) = objective.batches
    samples = math.ceil(batch.size / (groups * share))
    if groups * samples >= batch.size:
        return list(batch.pieces(math.ceil(batch.size / groups)))
    chosen = [i * batch.size // (groups * samples) for i in range(groups * samples)]
    # Each group takes samples from all over the batch.
    return [batch.take(chosen[g::groups]) for g in range(groups)]


def part_gradients(operator: "Curvature[Any]") -> Iterator[tuple[float, Tensor]]:
    """(loss terms, contribution to ∇L without weight decay) of each part of the data, see `parts_of`."""
    objective = operator.objective
    objective.cost.gradients += 1
    for index, batch in enumerate(parts_of(objective)):
        flat_N = torch.zeros(objective.length, dtype=objective.dtype, device=objective.device)
        for piece in objective.pieces_of(batch, index, operator.micro_batch):
            with operator.kernels.active():
                flat_N += objective.gradient_of(piece)
        yield operator.terms_of(batch, index), objective.ranks.over_data(flat_N)
