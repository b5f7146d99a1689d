"""The first sentence of an answer that ended right after it began claims nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvcli import Batch, Subject, analyse, make_objective
from curvcli.analyses.registry import get
from curvcli.loading.loss import loss_terms

X, Y = torch.linspace(-1, 1, 256).sin().view(32, 8), torch.arange(32) % 3


class Slow(nn.Module):
    """A network that is asked more often than the time allows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 40), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(x)))
        return out


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("step", {"timeout": "0.001s"}, "No step was computed."),
        ("landscape", {"timeout": "0.001s"}, "Fewer than three points were looked at"),
        (
            "trace",
            {"max_matvecs": 3, "deflate": 2, "steps": 8},
            "The curvature's sum is not known yet",
        ),
    ],
)
def test_nothing_is_claimed(name: str, options: dict[str, Any], sentence: str) -> None:
    """No step, no point and no error: no method fails, no loss is convex, no trace is known."""
    objective = make_objective(
        Slow(), [Batch(((X,), {}, Y), len(X))], loss_terms("cross_entropy", {})
    )
    answer = analyse(name, Subject(objective=objective), **options)
    told = get(name).headline(answer)
    assert not answer.complete
    assert told.sentence.startswith(sentence)
    assert told.level == "attention"


class Looked(nn.Module):
    """An embedding of which most rows are never looked up, before a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.last = nn.Embedding(40, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.rows(x)))
        return out


def test_rows_that_are_never_looked_up_are_no_eigenvalues_that_have_converged() -> None:
    """After four products it is not known that the third largest is zero; after all of them zeros have their rank."""
    words = torch.arange(32) % 5
    objective = make_objective(
        Looked(), [Batch(((words,), {}, Y), len(Y))], loss_terms("cross_entropy", {})
    )
    cut = analyse("hessian", Subject(objective=objective), top=10, max_matvecs=4).result
    assert cut.untouched == 35 * 8
    assert not any(p.converged for p in cut.top if p.value == 0.0)
    dense = [p.value for p in analyse("hessian", Subject(objective=objective), top=60).result.top]
    assert dense.count(0.0) > 0
    assert dense == sorted(dense, reverse=True)
