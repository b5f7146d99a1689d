"""The rules at the extremes of values and widths: bad data with a good network, and the other way round."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvcli import Subject, analyse
from curvcli.analyses.gradients.rules import RULES
from curvcli.report.data import Finding
from tests.conftest import MakeObjective

WIDTHS = range(1, 11)


def network(width: int) -> Any:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))


class Bounded(nn.Module):
    """What it is given ends in [-1, 1] before anything is multiplied with it."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.how, self.rest = how, network(width)

    def forward(self, x: Tensor) -> Any:
        return self.rest(torch.tanh(x) if self.how == "tanh" else x.clamp(-1, 1))


def serious(found: list[Finding]) -> list[Finding]:
    return [f for f in found if f.severity != "note"]


def findings(
    model: nn.Module, make_objective: MakeObjective, x: Tensor | None = None
) -> list[Finding]:
    torch.manual_seed(0)
    usual = torch.randn(8, 3)
    data = usual if x is None else x
    objective = make_objective(model, data, torch.arange(8) % 2, accept_nonfinite=True)
    return serious(analyse("gradients", Subject(objective=objective)).findings)


def spoilt(value: float) -> Tensor:
    x = torch.randn(8, 3)
    x[5, 1] = value
    return x


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_thresholds_at_the_ends_of_the_numbers(rule: Any) -> None:
    """A value at the threshold is well; ∞ and −∞ are ill on the side that the rule watches; no value is no finding."""
    at = rule.threshold
    assert not rule.violated(at, at)
    assert not rule.violated(None, at)
    assert not rule.violated(math.nan, at)
    assert rule.violated(math.inf, at) == rule.above
    assert rule.violated(-math.inf, at) == (not rule.above)
    assert rule.violated(1.0, 0.0) == rule.above
    assert rule.violated(0.0, 1.0) == (not rule.above)


@pytest.mark.parametrize("width", WIDTHS)
def test_good_data_and_a_good_network_are_well(width: int, make_objective: MakeObjective) -> None:
    assert not findings(network(width), make_objective)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bad_data_is_named_before_any_layer(
    width: int, value: float, make_objective: MakeObjective
) -> None:
    """A linear layer makes NaN or ±∞ of it, and tanh may bound that: the sample is named either way."""
    (first, *_) = findings(network(width), make_objective, spoilt(value))
    assert (first.rule, first.subject) == ("gradients.nonfinite", "data")
    assert f"the input of sample 5 is {value}, entry [1]" in first.message


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("how", ["tanh", "clamp"])
def test_infinity_that_the_network_hides_is_named(
    width: int, how: str, make_objective: MakeObjective
) -> None:
    """Every activation and every gradient is finite. −∞ is how places are masked, and no finding by itself."""
    found = findings(Bounded(width, how), make_objective, spoilt(math.inf))
    assert [(f.rule, f.severity, f.subject) for f in found] == [
        ("gradients.nonfinite", "warning", "data")
    ]
    assert "the input of sample 5 is inf, entry [1]" in found[0].message
    assert not findings(Bounded(width, how), make_objective, spoilt(-math.inf))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_bad_network_is_blamed_on_good_data(
    width: int, value: float, layer: int, make_objective: MakeObjective
) -> None:
    model = network(width)
    with torch.no_grad():
        model[layer].bias[0] = value
    found = findings(model, make_objective)
    # tanh makes 1 of ∞, and the derivative there is zero: everything behind it is finite.
    hidden = layer == 0 and value == math.inf
    assert ("gradients.nonfinite", str(layer)) in [(f.rule, f.subject) for f in found] or hidden
    assert not any(f.subject == "data" for f in found)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scale", [0.0, 1e30])
def test_layers_at_zero_and_beyond_saturation(
    width: int, scale: float, make_objective: MakeObjective
) -> None:
    """A head of zeros passes no gradient to what is before it; weights of 1e30 leave tanh no derivative at all."""
    model = network(width)
    with torch.no_grad():
        if scale == 0:
            model[2].weight.zero_()
        else:
            model[0].weight.mul_(scale)
    rules = {f.rule for f in findings(model, make_objective)}
    assert "gradients.zero-gradient" in rules
    assert ("gradients.saturated" in rules) == (scale != 0)
