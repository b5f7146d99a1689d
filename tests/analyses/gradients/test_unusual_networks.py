"""Networks with transforms of `torch.func` inside, or with one layer called many times, are measured like any other."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvcli import Batch, Subject, analyse, make_objective
from curvcli.analyses.shared.journal import Journal
from curvcli.errors import LossError
from curvcli.loading.loss import loss_terms
from curvcli.objective.objective import Objective

X, Y = torch.linspace(-2, 2, 72).sin().view(12, 6), torch.arange(12) % 3


class Mapped(nn.Module):
    """Its layer is called inside vmap."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.vmap(lambda row: torch.relu(self.first(row)))(x))
        return out


class Slopes(Mapped):
    """Its output has derivatives by torch.func in it; each layer is called inside and outside."""

    def own(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(x)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        slopes: Tensor = torch.vmap(torch.func.jacrev(self.own))(x)
        return self.own(x) + slopes.sum(-1)


class Midpoint(nn.Module):
    """Sixteen calls of one small network, by steps of the midpoint rule."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.slope = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(8):
            x = x + 0.1 * self.slope(x + 0.05 * self.slope(x))
        out: Tensor = self.last(x)
        return out


class Doubled(torch.autograd.Function):
    """Calls an activation function in its forward, and has a backward of its own."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return 2 * F.relu(x)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return 2 * g * (x > 0)


class WithFunction(nn.Module):
    """An operation of its own between two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(F.relu(Doubled.apply(self.first(x))))
        return out


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out + torch.rand_like(out)


class Headed(nn.Module):
    """A library's network with a second head: not used, or detached from what the loss sees."""

    def __init__(self, detached: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.detached = detached
        self.body, self.head, self.other = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x))
        out: Tensor = self.head(h)
        other: Tensor = self.other(h)
        return out + other.detach() if self.detached else out


def objective_of(model: nn.Module) -> Objective:
    return make_objective(model, [Batch(((X,), {}, Y), 12)], loss_terms("cross_entropy", {}))


@pytest.mark.parametrize("kind", [Mapped, Slopes])
def test_transforms_inside_are_no_obstacle(kind: type[Mapped]) -> None:
    """The layers' gradients are those of loss.backward(); what is seen outside of transforms is shown."""
    subject = Subject(objective=objective_of(kind()))
    answer = analyse("gradients", subject)
    model = kind()
    F.cross_entropy(model(X), Y).backward()
    weighted = [r for r in answer.result.layers if r.weight_gradient_rms is not None]
    for layer in weighted:
        weight = model.get_submodule(layer.name).weight
        assert isinstance(weight, nn.Parameter)
        assert weight.grad is not None
        # Float32, summed in another order.
        assert layer.weight_gradient_rms == pytest.approx(
            weight.grad.square().mean().sqrt().item(), rel=1e-4
        )
    assert "last" in {layer.name for layer in weighted}
    assert not [f for f in answer.findings if f.severity == "error"]
    checked = analyse("backprop", subject)
    assert checked.result.passed
    assert not checked.findings


@pytest.mark.parametrize("seed", range(5))
def test_small_steps_of_one_layer_are_no_vanishing(seed: int) -> None:
    """∂L/∂h is large at the end of the stream and small on its branches: theory, no illness of depth."""
    answer = analyse("gradients", Subject(objective=objective_of(Midpoint(seed))))
    assert not [f for f in answer.findings if f.severity == "error"]


def test_randomness_outside_of_the_layers_is_named_by_its_module() -> None:
    """Its layers are the same in both runs: the noise is its own."""
    with pytest.raises(LossError, match="random modules: 'Noisy'"):
        objective_of(Noisy())
    with pytest.raises(LossError, match=r"random modules: '0'"):
        objective_of(nn.Sequential(Noisy(), nn.Tanh()))


def test_a_head_that_nobody_uses_is_no_illness() -> None:
    """The loss does not depend on it; on a detached one it does, and that stays an error."""
    answer = analyse("gradients", Subject(objective=objective_of(Headed(detached=False))))
    assert answer.result.unused == ["other"]
    assert not [f for f in answer.findings if f.severity == "error"]
    assert any("does not depend on 'other'" in note for note in answer.notes)
    answer = analyse("gradients", Subject(objective=objective_of(Headed(detached=True))))
    assert not answer.result.unused
    assert [f.rule for f in answer.findings if f.severity == "error"] == ["gradients.zero-gradient"]


def test_a_gradient_check_ends_when_it_is_asked_to() -> None:
    """What was compared by then is shown, and the answer says that it is a part."""
    subject = Subject(objective=objective_of(Mapped()))
    answer = analyse("backprop", subject, Journal(interrupted=lambda: True))
    assert not answer.complete
    assert len(answer.result.slopes) == 1
    assert any("1 of 4 gradients" in note for note in answer.notes)
    assert answer.headline is not None
    assert answer.headline.sentence.startswith("No wrong gradient so far: the tensor")


def test_what_an_operation_of_its_own_calls_is_no_layer() -> None:
    """No gradient passes the functions inside of an autograd.Function; the one outside is seen."""
    objective = make_objective(
        WithFunction(), [Batch(((X,), {}, Y), len(X))], loss_terms("cross_entropy", {})
    )
    result = analyse("gradients", Subject(objective=objective)).result
    assert [layer.name for layer in result.layers] == ["first", "relu()", "last"]
    assert all(layer.activation_gradient_rms for layer in result.layers)
