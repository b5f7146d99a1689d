"""Derivatives that do not exist: a norm at zero is named by sample and operation, and is no defect."""

import pytest
import torch
from torch import Tensor, nn

from curvcli import Subject, analyse
from curvcli.errors import NonFiniteError
from tests.conftest import MakeObjective


class Length(nn.Module):
    """The length of a linear map; the map of zero is zero."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.map, self.head = how, nn.Linear(3, 4, bias=False), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.map(x)
        square = h.square().sum(-1, keepdim=True)
        length = {
            "norm": lambda: h.norm(dim=-1, keepdim=True),
            "sqrt": square.sqrt,
            "kept": (square + 1e-12).sqrt,
        }[self.how]()
        out: Tensor = self.head(length)
        return out


MULTIPLYING = ("hessian", "trace", "density", "saddle", "taylor", "step", "lr")


@pytest.mark.parametrize("question", MULTIPLYING)
@pytest.mark.parametrize(
    ("how", "what", "operation"),
    [("norm", "the second derivative", "Div"), ("sqrt", "the gradient", "Pow")],
)
def test_a_norm_at_zero_is_said_as_such(
    question: str, how: str, what: str, operation: str, make_objective: MakeObjective
) -> None:
    """d√s/ds is ∞ at 0, so that ∇√s is 0 · ∞; torch's norm has gradient 0 there, and second derivative 0/0."""
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    x[2] = 0
    objective = make_objective(Length(how), x, y, splits=[2, 4])
    with pytest.raises(
        NonFiniteError, match=rf"{what} contains NaN.*out of {operation} at sample 2, behind a norm"
    ):
        analyse(question, Subject(objective=objective))


def test_backprop_accuses_no_layer_of_a_square_root_at_zero(make_objective: MakeObjective) -> None:
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    x[2] = 0
    with pytest.raises(NonFiniteError, match="at sample 2"):
        analyse("backprop", Subject(objective=make_objective(Length("sqrt"), x, y)))


def test_a_root_kept_away_from_zero_is_measured(make_objective: MakeObjective) -> None:
    """What the error advises works."""
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    x[2] = 0
    answer = analyse("hessian", Subject(objective=make_objective(Length("kept"), x, y)), top=1)
    assert answer.result.top[0].converged


def test_gradients_that_overflow_are_not_said_to_be_norms(make_objective: MakeObjective) -> None:
    """Squares of 1e30 are beyond float32; no operation gives NaN."""

    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)
            nn.init.constant_(self.layer.weight, 1e-30)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x) * 1e20
            return out

    objective = make_objective(Steep(), torch.full((2, 1), 1e25), torch.zeros(2, 1), "mse")
    with pytest.raises(NonFiniteError, match="gradient contains NaN or Inf") as caught:
        analyse("hessian", Subject(objective=objective))
    assert "behind a norm" not in str(caught.value)
