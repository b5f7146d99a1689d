"""The plan of products counts what one process holds."""

from types import SimpleNamespace
from typing import Any

import torch

from curvcli import Batch
from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.operators.curvature.planning import make_plan


class _Quarter(Ranks):
    """One of four processes, as far as a plan asks."""

    size, parted = 4, True


def capacity(ranks: Ranks, n: int, length: int) -> int:
    """Vectors of the basis of a network of ``n`` weights within 40 vectors of 1,000 numbers."""
    objective: Any = SimpleNamespace(
        n=n, length=length, untouched=0, dtype=torch.float32, splittable=True, evaluated_bytes=0,
        batches=[Batch(((torch.zeros(8, 1),), {}, torch.zeros(8)), 8)], ranks=ranks,
    )  # fmt: skip
    return make_plan(objective, 160_000, lambda _: (0, 0), wanted=3, preferred=80).capacity


def test_divided_vectors_take_a_share_of_the_memory() -> None:
    """Of four processes each keeps as many vectors as one process of a quarter of the network."""
    assert capacity(_Quarter(), 4000, 1000) == capacity(ALONE, 1000, 1000)
