"""What `gradients` measures of every layer is what autograd gives without hooks."""

import gc
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvcli import analyse
from curvcli.analyses.gradients.result import GradientsResult, LayerSignal
from curvcli.analyses.shared.subject import Subject
from curvcli.objective.layout import flatten
from curvcli.objective.objective import Objective
from curvcli.operators.signals.gradient_flow import flow
from tests.conftest import MakeObjective

# Sums of squares of some hundred float32 numbers against the same in float64.
RTOL = 1e-5

Taps = Callable[[str, Tensor], Tensor]


def run(objective: Objective, **options: Any) -> GradientsResult:
    return analyse("gradients", Subject(objective=objective), **options).result


def rows(result: GradientsResult) -> dict[str, LayerSignal]:
    return {s.name: s for s in result.layers}


class InPlace(nn.Module):
    """An in-place activation on a layer's output, one on a view, and one on the sum of a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.GroupNorm(1, 3)
        self.flat = nn.Flatten()
        self.act = nn.ELU(inplace=True)
        self.branch = nn.Linear(48, 48)
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.act(self.flat(self.norm(self.relu(self.conv(x.view(-1, 1, 4, 4))))))
        y = self.relu(y + self.branch(y))
        return self.head(y)

    def by_hand(self, x: Tensor, tap: Taps) -> Tensor:
        y = tap("conv", self.conv(x.view(-1, 1, 4, 4)))
        y = tap("norm", self.norm(tap("relu", F.relu(y))))
        y = tap("flat", y.flatten(1))
        y = tap("act", F.elu(y))
        y = tap("relu#2", F.relu(y + tap("branch", self.branch(y))))
        return tap("head", self.head(y))


class Containers(nn.Module):
    """Layers that return a tuple and a dict, one of whose tensors is not used."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 16))

        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            y = x @ self.weight.T
            return y, {"double": 2 * y, "unused": y.square()}

    def __init__(self) -> None:
        super().__init__()
        self.pair = self.Pair()
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Any:
        y, more = self.pair(x)
        return self.head(torch.cat((y, more["double"]), 1))

    def by_hand(self, x: Tensor, tap: Taps) -> Tensor:
        a = tap("pair", x @ self.pair.weight.T)
        b = tap("pair", 2 * a)
        return tap("head", self.head(torch.cat((a, b), 1)))


class Shared(nn.Module):
    """One layer and one activation called three times, the bare functions gelu and tanh, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.shared = nn.Linear(16, 16)
        self.act = nn.Tanh()
        self.tied = nn.Linear(16, 16)
        self.tied.weight = self.first.weight
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.act(self.shared(F.gelu(self.first(x))))
        y = self.act(self.shared(y))
        return self.head(torch.tanh(self.tied(self.act(self.shared(y)))))

    def by_hand(self, x: Tensor, tap: Taps) -> Tensor:
        y = tap("gelu()", F.gelu(tap("first", self.first(x))))
        y = tap("act", torch.tanh(tap("shared", self.shared(y))))
        y = tap("act#2", torch.tanh(tap("shared#2", self.shared(y))))
        y = tap("act#3", torch.tanh(tap("shared#3", self.shared(y))))
        y = tap("tanh()", torch.tanh(tap("tied", self.tied(y))))
        return tap("head", self.head(y))


class Recurrent(nn.Module):
    """A batch-first LSTM, whose output is a view, with both its results used."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Any:
        states, (_, c) = self.lstm(x.view(-1, 4, 4))
        return self.head(torch.cat((states.mean(1), c[-1]), 1))

    def by_hand(self, x: Tensor, tap: Taps) -> Tensor:
        states, (_, c) = self.lstm(x.view(-1, 4, 4))
        states, c = tap("lstm", states), tap("lstm", c)
        return tap("head", self.head(torch.cat((states.mean(1), c[-1]), 1)))


@pytest.mark.parametrize("kind", [InPlace, Containers, Shared, Recurrent])
@pytest.mark.parametrize("splits", [None, [5, 12, 7]])
def test_activation_gradients_are_those_of_autograd_without_hooks(
    kind: Callable[[], Any], splits: list[int] | None, make_objective: MakeObjective
) -> None:
    torch.manual_seed(1)
    model = kind()
    x, y = torch.randn(24, 16), torch.randint(4, (24,))
    result = run(make_objective(model, x, y, splits=splits), parts=1)

    tapped: list[tuple[str, Tensor]] = []

    def tap(name: str, tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        tapped.append((name, copy))
        return copy

    loss = F.cross_entropy(model.by_hand(x, tap), y, reduction="sum")
    parts = torch.autograd.grad(loss, [t for _, t in tapped])
    expected: dict[str, list[Tensor]] = {}
    for (name, _), gradient in zip(tapped, parts, strict=True):
        expected.setdefault(name, []).append(gradient)
    found = rows(result)
    for name, gradients_ in expected.items():
        entries = sum(g.numel() for g in gradients_)
        rms = math.sqrt(sum(float(g.double().square().sum()) for g in gradients_) / entries)
        assert found[name].activation_gradient_rms == pytest.approx(rms, rel=RTOL), name
        assert found[name].nonfinite == 0
    assert [n for n in found if n in expected] == list(expected), "execution order"


@pytest.mark.parametrize("kind", [InPlace, Containers, Shared, Recurrent])
def test_watching_changes_neither_loss_nor_weight_gradients(
    kind: Callable[[], nn.Module], make_objective: MakeObjective
) -> None:
    torch.manual_seed(2)
    objective = make_objective(
        kind(), torch.randn(24, 16), torch.randint(4, (24,)), weight_decay=0.1
    )
    before = [p.detach().clone() for p in objective.parameters]
    found = flow(objective)
    torch.testing.assert_close(flatten(found.gradient), objective.gradient())
    assert found.loss == pytest.approx(objective.loss, rel=RTOL)
    assert all(torch.equal(a, b) for a, b in zip(before, objective.parameters, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in objective.model.modules())


def test_weight_numbers_of_a_layer(make_objective: MakeObjective) -> None:
    torch.manual_seed(3)
    model: Any = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    x, y = torch.randn(24, 16), torch.randint(4, (24,))
    layer = rows(run(make_objective(model, x, y)))["0"]
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), [model[0].weight])
    weight = model[0].weight.detach()
    assert layer.weight_gradient_rms == pytest.approx(
        float(gradient.square().mean().sqrt()), rel=RTOL
    )
    ratio = float(gradient.norm() / weight.norm())
    assert layer.gradient_to_weight == pytest.approx(ratio, rel=RTOL)
    assert layer.weight_scale == pytest.approx(4 * float(weight.double().std()), rel=RTOL)


def test_zeros_dead_and_saturated_units(make_objective: MakeObjective) -> None:
    model: Any = nn.Sequential(
        nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)
    )
    torch.manual_seed(4)
    x, y = torch.randn(64, 16), torch.randint(4, (64,))
    with torch.no_grad():
        model[0].bias[:3] = -1e3
        model[2].weight *= 20
    found = rows(run(make_objective(model, x, y)))
    h = F.relu(model[0](x))
    assert found["1"].zero_fraction == pytest.approx(float((h == 0).double().mean()), abs=1e-9)
    assert found["1"].dead_fraction == 3 / 8
    t = torch.tanh(model[2](h))
    assert found["3"].saturated_fraction == pytest.approx(float((t.abs() > 0.95).double().mean()))
    assert found["0"].dead_fraction is None


def test_a_convolution_channel_is_a_unit(make_objective: MakeObjective) -> None:
    torch.manual_seed(5)
    model: Any = InPlace()
    with torch.no_grad():
        model.conv.bias[1] = -1e3
    objective = make_objective(model, torch.randn(24, 16), torch.randint(4, (24,)))
    assert rows(run(objective))["relu"].dead_fraction == pytest.approx(1 / 3)


class Residual(nn.Module):
    """A stem, three residual blocks and a head."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inner = nn.LayerNorm(16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tanh(self.inner(self.norm(x)))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 16)
        self.blocks = nn.Sequential(*(self.Block() for _ in range(3)))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.blocks(self.stem(x)))


def test_residual_branches_are_told_from_the_trunk(make_objective: MakeObjective) -> None:
    result = run(make_objective(Residual(), torch.randn(24, 16), torch.randint(4, (24,))))
    roles = {s.name: s.role for s in result.layers}
    assert {n for n, r in roles.items() if r == "trunk"} == {"stem", "head"}
    assert {n for n, r in roles.items() if r == "sum"} == {f"blocks.{i}" for i in range(3)}
    assert {n.split(".")[2] for n, r in roles.items() if r == "branch"} == {
        "norm",
        "inner",
        "tanh()",
    }
    assert result.trend_layers == ["stem", "blocks.0", "blocks.1", "blocks.2", "head"]
    assert result.residual_growth is not None
    gains = [s.norm_gain for s in result.layers if s.kind == "LayerNorm"]
    assert all(g is not None and g > 0 for g in gains)


def test_layer_norm_gain_is_one_over_the_deviation(make_objective: MakeObjective) -> None:
    model: Any = nn.Sequential(nn.LayerNorm(16, eps=0.0), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight.fill_(3.0)
    x = torch.randn(24, 16)
    found = rows(run(make_objective(model, x, torch.randint(4, (24,)))))["0"]
    assert found.norm_gain == pytest.approx(float((3 / x.std(1, unbiased=False)).mean()), rel=RTOL)


def test_vanished_gradients_do_not_underflow(make_objective: MakeObjective) -> None:
    """Gradients of 1e-25 have squares that float32 does not hold."""
    model: Any = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    with torch.no_grad():
        model[1].weight *= 1e-25
    layer = rows(run(make_objective(model, torch.randn(24, 16), torch.randint(4, (24,)))))["0"]
    assert layer.activation_gradient_rms is not None
    assert 1e-28 < layer.activation_gradient_rms < 1e-25


def test_thousands_of_layers(make_objective: MakeObjective) -> None:
    """No recursion, and a trend from medians instead of all pairs."""
    torch.manual_seed(6)
    model: Any = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(1500)))
    for layer in model:
        nn.init.orthogonal_(layer.weight)
    result = run(make_objective(model, torch.randn(4, 2), torch.randn(4, 2), "mse"), parts=1)
    assert len(result.layers) == 1500
    assert result.gain_per_layer == pytest.approx(1.0, abs=1e-6)


def test_activations_are_not_kept(make_objective: MakeObjective) -> None:
    """At the end of the forward pass no large activation but the last is held by a Python object."""
    alive: list[int] = []

    class Count(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            same = [o for o in gc.get_objects() if type(o) is Tensor and o.shape == (290, 370)]
            alive.append(len(same))
            return x

    class Shift(nn.Module):
        """A layer of whose output autograd keeps nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(370))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.bias

    model: Any = nn.Sequential(*(Shift() for _ in range(12)), Count(), nn.Linear(370, 4))
    objective = make_objective(model, torch.randn(290, 370), torch.randint(4, (290,)))
    with_input = alive[0]
    flow(objective, parts=1)
    assert alive[-1] <= with_input


def test_a_frozen_layer_is_measured_without_a_gradient(make_objective: MakeObjective) -> None:
    model: Any = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))
    objective = make_objective(model, torch.randn(24, 16), torch.randint(4, (24,)), select=["2.*"])
    found = rows(run(objective))
    assert [s.role for s in found.values()] == ["unreached", "unreached", "trunk"]
    assert found["0"].activation_rms is not None
    assert found["0"].activation_gradient_rms is None
    assert found["0"].weight_gradient_rms is None


def test_batch_statistics_are_those_of_the_given_batches(make_objective: MakeObjective) -> None:
    """In train mode a batch is not cut: its samples depend on each other."""
    torch.manual_seed(7)
    model: Any = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    x, y = torch.randn(24, 16) + 2, torch.randint(4, (24,))
    result = run(make_objective(model, x, y, train_mode=True))
    model.train()
    h = model[0](x)
    (gradient,) = torch.autograd.grad(
        F.cross_entropy(model[3](F.relu(F.batch_norm(h, None, None, model[1].weight, model[1].bias, True))), y),
        [h],
    )  # fmt: skip
    rms = 24 * float(gradient.square().mean().sqrt())
    assert rows(result)["0"].activation_gradient_rms == pytest.approx(rms, rel=RTOL)
    assert result.noise is None


def test_an_output_that_nothing_uses_has_no_gradient(make_objective: MakeObjective) -> None:
    """The hook of one half of an operation with two outputs is given no tensor."""

    class Spread(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.var_mean(x, 1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.spread = nn.Linear(6, 5), Spread()

        def forward(self, x: Tensor) -> Tensor:
            variance, _ = self.spread(self.layer(x))
            return torch.stack([variance, -variance], 1)

    x, y = torch.randn(8, 6), torch.arange(8) % 2
    model = Net()
    seen = rows(run(make_objective(model, x, y)))["spread"]
    half = torch.var(model.layer(x), 1).detach().requires_grad_()
    F.cross_entropy(torch.stack([half, -half], 1), y, reduction="sum").backward()
    assert half.grad is not None
    expected = half.grad.square().mean().sqrt()
    assert seen.activation_gradient_rms == pytest.approx(float(expected), rel=RTOL)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_activations_of_a_recurrent_layer_are_its_output(
    kind: Any, make_objective: MakeObjective
) -> None:
    """Not its final states: h_n repeats the last output, and c_n is none."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = kind(4, 6, batch_first=True)
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Any:
            _, final = self.cells(x.view(-1, 4, 4))
            return self.head((final[0] if isinstance(final, tuple) else final)[-1])

    torch.manual_seed(2)
    model, x, y = Net(), torch.randn(9, 16), torch.randint(4, (9,))
    found = rows(run(make_objective(model, x, y), parts=1))["cells"]
    output = model.cells(x.view(-1, 4, 4))[0].detach().double()
    assert found.activation_rms == pytest.approx(float(output.square().mean().sqrt()), rel=RTOL)
    assert found.activation_gradient_rms
