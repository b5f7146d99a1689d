"""Fixtures shared by the tests."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvcli.loading.loss import loss_terms
from curvcli.objective import checks
from curvcli.objective.batch import Batch
from curvcli.objective.objective import Objective
from tests import slow
from tests.oracles.program import ROOT

# Processes that tests start inherit it: threads of several workers would wait for each other on a few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
SAMPLES = ROOT / "sample_models"

MakeObjective = Callable[..., Objective]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that take long are slow sweeps too."""
    names = slow.names()
    for item in items:
        if item.nodeid in names:
            item.add_marker(pytest.mark.full)


@pytest.fixture
def samples() -> Path:
    """Folder of the sample models."""
    return SAMPLES


@pytest.fixture
def make_objective() -> MakeObjective:
    """(model, x, y, loss, splits=[…], **Objective options) -> Objective."""

    def make(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        loss: str = "cross_entropy",
        splits: list[int] | None = None,
        loss_args: dict[str, object] | None = None,
        **options: Any,
    ) -> Objective:
        batches = []
        first = 0
        for size in splits or [len(x)]:
            piece = slice(first, first + size)
            batches.append(Batch(((x[piece],), {}, y[piece]), size))
            first += size
        return checks.make_objective(model, batches, loss_terms(loss, loss_args or {}), **options)

    return make


@pytest.fixture(autouse=True)
def _same_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """A test draws the same alone, in the whole suite and in parallel, so that a failure can be repeated."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
