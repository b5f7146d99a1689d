"""`gradients` takes the memory of a plain backward pass, and work by the number of modules."""

import gc
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn

from curvcli import analyse
from curvcli.analyses.gradients.view import view
from curvcli.analyses.shared.subject import Subject
from curvcli.machine.meter import MemoryMeter
from curvcli.objective.objective import Objective
from curvcli.operators.signals.gradient_flow import flow
from tests.conftest import MakeObjective


def peak(work: Callable[[], object]) -> int:
    gc.collect()
    with MemoryMeter() as meter:
        work()
    return int(meter.peak)


def plain(objective: Objective) -> None:
    total = objective.sum_of(objective.batches[0])
    torch.autograd.grad(total, objective.parameters)


def cnn(make: MakeObjective) -> Objective:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True),
        nn.MaxPool2d(2), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return make(model, torch.randn(32, 3, 32, 32), torch.randint(10, (32,)))


class Transformer(nn.Module):
    """Four layers of torch's own, causal, width 64."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 64)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, norm_first=True)
            for _ in range(4)
        )
        self.head = nn.Linear(64, 50)

    def forward(self, x: Tensor) -> Any:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        y = self.embed(x)
        for layer in self.layers:
            y = layer(y, src_mask=mask, is_causal=True)
        return self.head(y)


def transformer(make: MakeObjective) -> Objective:
    return make(Transformer(), torch.randint(50, (16, 64)), torch.randint(50, (16, 64)))


@pytest.mark.parametrize("network", [cnn, transformer])
def test_memory_stays_near_that_of_a_plain_backward_pass(
    network: Callable[[MakeObjective], Objective], make_objective: MakeObjective
) -> None:
    """At most 1.3 times the tensors of ``loss.backward()``, also when the data is not cut."""
    torch.manual_seed(0)
    objective = network(make_objective)
    least = peak(lambda: plain(objective))
    assert peak(lambda: flow(objective, parts=1)) <= 1.3 * least
    assert peak(lambda: analyse("gradients", Subject(objective=objective)).result) <= 1.3 * least


def calls(modules: int, make: MakeObjective) -> int:
    """Python and C functions called for a chain of so many layers, table and JSON included."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(modules)))
    objective = make(model, torch.randn(4, 2), torch.randn(4, 2), "mse")
    count: int = 0

    def note(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        result = analyse("gradients", Subject(objective=objective)).result
        list(view(result))
        msgspec.json.encode(result)
    finally:
        sys.setprofile(None)
    assert len(result.layers) == modules
    return count


def test_work_grows_with_the_number_of_modules(make_objective: MakeObjective) -> None:
    """Four times the modules: at most a tenth more than four times the calls."""
    assert calls(1200, make_objective) <= 1.1 * 4 * calls(300, make_objective)
