"""Cells called in a loop of the user's own have the lag of autograd through it, if nothing comes between the calls."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvcli import analyse
from curvcli.analyses.gradients.result import GradientsResult
from curvcli.analyses.shared.subject import Subject
from tests.conftest import MakeObjective


def run(model: nn.Module, x: Tensor, y: Tensor, make: MakeObjective) -> GradientsResult:
    return analyse("gradients", Subject(objective=make(model, x, y, "mse"))).result


class Loop(nn.Module):
    """A cell called in a loop of the user's own; ``keep`` is a share of the state that is passed on."""

    def __init__(self, kind: Any, keep: float | None = None) -> None:
        super().__init__()
        self.cell = kind(3, 5)
        self.head = nn.Linear(5, 2)
        self.keep = keep
        self.states: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        state, self.states = None, []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            self.states.append(state[0] if isinstance(state, tuple) else state)
            if self.keep is not None:
                state = state * self.keep
        return self.head(self.states[-1])


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_cells_called_in_a_loop(kind: Any, make_objective: MakeObjective) -> None:
    """∂h_T/∂h_t of the loop against autograd through the loop itself, the first cell state of an LSTM held fixed."""
    torch.manual_seed(10)
    model, x = Loop(kind), torch.randn(6, 9, 3)
    (trend,) = run(model, x, torch.randn(6, 2), make_objective).time
    assert (trend.name, trend.kind, trend.steps) == ("cell", kind.__name__, 9)
    assert all(g is not None and g > 0 for g in trend.gradient)
    assert trend.output_error is not None
    assert trend.output_error < 1e-5
    # The pieces of the data that are unrolled: the first of four.
    model.double()(x[:2].double())
    expected = torch.zeros(9, dtype=torch.float64)
    for unit in range(5):
        parts = torch.autograd.grad(
            model.states[-1][:, unit].sum(), model.states, retain_graph=True
        )
        expected += torch.stack([p.square().sum() for p in parts]).flip(0)
    assert trend.lag == pytest.approx((expected / 2 / 5).sqrt().tolist(), rel=1e-5)
    assert trend.decay is not None
    assert set(trend.gates) == {
        nn.RNNCell: set(), nn.GRUCell: {"reset", "update"}, nn.LSTMCell: {"input", "forget", "output"}
    }[kind]  # fmt: skip


def test_a_loop_that_changes_the_state_has_no_lag(make_objective: MakeObjective) -> None:
    """What the user's own code does between two calls is not in the cell's equations."""
    torch.manual_seed(11)
    model = Loop(nn.GRUCell, keep=0.5)
    (trend,) = run(model, torch.randn(6, 9, 3), torch.randn(6, 2), make_objective).time
    assert trend.lag == []
    assert trend.gradient_gain is not None


class Solver(nn.Module):
    """As adaptive solvers call a layer: for a step, for the length of it, which hardly counts, and for none of it."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.encode = nn.Embedding(50, 8)
        self.encode.weight.requires_grad_(False)
        self.f, self.head = nn.Linear(8, 8), nn.Linear(8, 2)
        self.share = share

    def forward(self, x: Tensor) -> Any:
        h = self.encode(x)
        h = h + torch.tanh(self.f(h))
        with torch.no_grad():
            self.f(h)
        return self.head(h + self.share * self.f(h) + torch.tanh(self.f(h)))


def test_calls_that_hardly_count_are_no_vanishing_gradient(make_objective: MakeObjective) -> None:
    """The layer has its gradient by its other calls, also by those that none comes to; a frozen one has none."""
    torch.manual_seed(11)
    x, y = torch.randint(50, (20,)), torch.randn(20, 2)
    answer = analyse("gradients", Subject(objective=make_objective(Solver(1e-12), x, y, "mse")))
    small = [s for s in answer.result.layers if s.name == "f#3"]
    assert small[0].activation_gradient_rms is not None
    assert small[0].activation_gradient_rms < 1e-10
    assert not [f for f in answer.findings if f.rule == "gradients.vanishing-layer"]
    assert answer.headline is not None
    assert "(not encode)" in answer.headline.sentence
