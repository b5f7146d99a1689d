"""Freshly initialised standard networks raise no alarm in `gradients` and `backprop`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import curvcli
from curvcli import Subject, analyse
from tests.conftest import MakeObjective
from tests.oracles.fresh import NETWORKS, Fresh

transformers = pytest.importorskip("transformers")

Build = Callable[[], Fresh]


def alarms(fresh: Fresh, seed: int, make_objective: MakeObjective) -> list[tuple[Any, ...]]:
    model, x, y = fresh
    objective = make_objective(model, x, y)
    return [
        (seed, finding.rule, finding.subject, finding.value)
        for question in ("gradients", "backprop")
        for finding in analyse(question, Subject(objective=objective)).findings
        if finding.severity != "note"
    ]


def check(name: str, seeds: range, make_objective: MakeObjective) -> None:
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        found += alarms(NETWORKS[name](), seed, make_objective)
    assert not found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fresh_network_raises_no_alarm(name: str, make_objective: MakeObjective) -> None:
    check(name, range(1), make_objective)


@pytest.mark.full
@pytest.mark.parametrize("name", NETWORKS)
def test_twenty_fresh_networks_raise_no_alarm(name: str, make_objective: MakeObjective) -> None:
    check(name, range(1, 21), make_objective)


@pytest.mark.full
@pytest.mark.parametrize("name", NETWORKS)
def test_twenty_fresh_networks_pass_the_default_rules(name: str) -> None:
    for seed in range(1, 21):
        torch.manual_seed(seed)
        model, x, y = NETWORKS[name]()
        answer = curvcli.check(model, "cross_entropy", (x, y))
        assert answer.result.healthy, (seed, answer.headline)
        assert not [f for f in answer.findings if f.severity != "note"], seed


class Flat(nn.Module):
    """A layer normalised right after it is made, its weights small: as in OLMo 2, whose branches end in a norm."""

    def __init__(self, scale: float, normed: bool) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 2)
        self.norm = nn.LayerNorm(8, eps=1e-12) if normed else nn.Identity()
        with torch.no_grad():
            self.first.weight.mul_(scale)
            self.first.bias.zero_()
            if not normed:
                self.head.weight.mul_(1 / scale)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.norm(self.first(x)))


@pytest.mark.parametrize("normed", [True, False])
def test_the_gradient_before_a_normalisation_is_no_explosion(
    normed: bool, make_objective: MakeObjective
) -> None:
    """d LayerNorm(s a)/da is independent of s, so ∂L/∂(s a) grows as 1/s; a head of weights 1/s is an explosion."""
    torch.manual_seed(0)
    objective = make_objective(Flat(1e-5, normed), torch.randn(16, 6), torch.arange(16) % 2)
    answer = analyse("gradients", Subject(objective=objective))
    rules = {f.rule for f in answer.findings if f.severity != "note"}
    assert ("gradients.exploding-layer" in rules) == (not normed)
    layer = next(s for s in answer.result.layers if s.name == "first")
    last = answer.result.layers[-1]
    assert (layer.activation_gradient_norm or 0) > 1e3 * (last.activation_gradient_norm or 0)
    assert layer.normalised == normed


def test_differences_that_bend_accuse_nobody(make_objective: MakeObjective) -> None:
    """LayerNorm of zeros, in single precision: its slope at 0 is 1/√eps = 1e6, and no step of 1e-2 sees it."""

    class Zeros(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.norm, self.head = (
                nn.Parameter(torch.zeros(8)), partial(F.layer_norm, normalized_shape=(8,), eps=1e-12), nn.Linear(8, 2),
            )  # fmt: skip
            self.memory = torch.zeros(0)

        def forward(self, x: Tensor) -> Any:
            # What is written into a tensor of float32 is not lifted to float64 with the rest.
            kept = self.memory.new_zeros(len(x), 8).copy_(self.token + 0 * x.sum(-1, keepdim=True))
            return self.head(self.norm(kept).to(self.head.weight))

    model = Zeros()
    objective = make_objective(model, torch.randn(6, 3), torch.zeros(6, dtype=torch.long))
    answer = analyse("backprop", Subject(objective=objective))
    assert not [f for f in answer.findings if f.subject == "token"]
    assert any("'token'" in note and "cannot be decided" in note for note in answer.notes)
