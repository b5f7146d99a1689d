"""The plan of products counts what one process holds."""

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from curvcli import Batch
from curvcli.errors import MemoryLimitError, OutputError
from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.machine.memory import Need
from curvcli.machine.plan import plan
from curvcli.operators.curvature.planning import make_plan


class _Quarter(Ranks):
    """One of four processes, as far as a plan asks."""

    size, parted = 4, True


def capacity(ranks: Ranks, n: int, length: int) -> int:
    """Vectors of the basis of a network of ``n`` weights within 40 vectors of 1,000 numbers."""
    objective: Any = SimpleNamespace(
        n=n, length=length, untouched=0, offload=None, dtype=torch.float32, splittable=True, evaluated_bytes=0,
        batches=[Batch(((torch.zeros(8, 1),), {}, torch.zeros(8)), 8)], ranks=ranks,
    )  # fmt: skip
    return make_plan(objective, 160_000, lambda _: (0, 0), wanted=3, preferred=80).capacity


def test_divided_vectors_take_a_share_of_the_memory() -> None:
    """Of four processes each keeps as many vectors as one process of a quarter of the network."""
    assert capacity(_Quarter(), 4000, 1000) == capacity(ALONE, 1000, 1000)


def test_vectors_elsewhere_take_no_memory() -> None:
    """All that are preferred are kept, within a memory that has room for the working vectors only."""
    within = partial(
        plan, kept=Need(0.0, 0.0), peak=Need(0.0, 0.0), batch_sizes=[8], vector=4000, wanted=3, n=10_000,
        splittable=True, preferred=80,
    )  # fmt: skip
    assert within(40_000, stored=10**9).capacity == 80
    assert within(40_000, stored=4000 * 30).capacity == 30
    with pytest.raises(MemoryLimitError, match="2 vectors of 4 kB, and 6 are the least"):
        within(40_000, stored=4000 * 2)
    with pytest.raises(MemoryLimitError, match=r"14 vectors .*") as error:
        within(40_000)
    assert "--offload" in str(error.value.hint)
    with pytest.raises(MemoryLimitError, match="8 vectors of 4 kB"):
        within(20_000, stored=10**9)


def test_the_disk_is_looked_at(tmp_path: Path) -> None:
    """A folder's free space limits the vectors; one that is not there is named."""
    objective: Any = SimpleNamespace(
        n=10_000, untouched=0, offload=str(tmp_path), dtype=torch.float32, splittable=True, evaluated_bytes=0,
        batches=[Batch(((torch.zeros(8, 1),), {}, torch.zeros(8)), 8)], ranks=ALONE,
    )  # fmt: skip

    def room() -> int:
        return make_plan(objective, 400_000, lambda _: (0, 0), wanted=3, preferred=80).capacity

    free = shutil.disk_usage(tmp_path).free
    assert room() == min(80, int(0.9 * free) // 40_000)
    objective.offload = str(tmp_path / "none")
    with pytest.raises(OutputError, match="--offload"):
        room()
