"""A run whose time ends while its eigenpairs are certified stops between two products and shows what it knows."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from curvcli import Subject, analyse
from curvcli.analyses.shared.journal import Journal, Stage, TimeIsUpError
from curvcli.linalg.operator import ROUNDING
from curvcli.operators.curvature.curvature import Curvature
from tests.oracles.mixture import dense

EPS = torch.finfo(torch.float32).eps
MakeObjective = Callable[..., Any]


@pytest.fixture
def subject(make_objective: MakeObjective) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(48, 5), torch.randint(3, (48,))
    return Subject(objective=make_objective(model, x, y, splits=[16, 16, 16]))


@pytest.mark.parametrize(
    ("question", "stage"),
    [("hessian", "spread"), ("hessian", "residuals"), ("saddle", "residuals")],
)
def test_no_product_follows(
    subject: Subject, question: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of neither the spread, the residuals, the rounding nor the check by differences, in one process."""
    up, after = [False], [0]
    contribution = Curvature.contribution

    def counted(self: Curvature[Any], *data: Any) -> Any:
        after[0] += up[0]
        return contribution(self, *data)

    monkeypatch.setattr(Curvature, "contribution", counted)

    def told(now: Stage) -> None:
        up[0] = up[0] or now.what == stage

    journal = Journal(progress=told, interrupted=lambda: up[0])
    answer = analyse(question, subject, journal)
    assert up[0]
    # The part of the data whose turn was announced is still looked at.
    assert after[0] <= 1
    assert not answer.complete
    assert any("those of the Lanczos recurrence" in note for note in answer.notes)
    assert answer.result.hvp_check is None


def test_a_part_of_a_walk_proves_nothing(subject: Subject) -> None:
    """The saddle's walk downhill is left out when time ends on it, and not said to have found no way down."""
    ended = [False]

    def told(now: Stage) -> None:
        ended[0] = ended[0] or (now.what == "walk" and now.done == 3)

    found = analyse("saddle", subject, Journal(progress=told, interrupted=lambda: ended[0]))
    assert ended[0]
    assert found.result.escape is None
    assert not found.complete
    assert not [f for f in found.findings if f.rule == "saddle.unconfirmed"]


def test_its_eigenvalues_are_right(subject: Subject) -> None:
    """Within the residuals of the recurrence, and some eps ‖H‖, of those of the dense float64 matrix.

    The spread over the data was measured by then, and is kept.
    """
    objective = subject.objective
    ended = [False]

    def told(now: Stage) -> None:
        ended[0] = ended[0] or now.what == "residuals"

    found = analyse("hessian", subject, Journal(progress=told, interrupted=lambda: ended[0]))
    model, batches = copy.deepcopy(objective.model).double(), objective.batches
    inputs = torch.cat([b.data[0][0] for b in batches]).double()
    targets = torch.cat([b.data[2] for b in batches])
    value = nn.functional.cross_entropy(model(inputs), targets)
    exact = torch.linalg.eigvalsh(dense(value, list(model.parameters()))).flip(0)
    for i, pair in enumerate(found.result.top):
        assert pair.batch_standard_error is not None
        assert abs(pair.value - float(exact[i])) <= pair.residual + ROUNDING * EPS * float(exact[0])


def test_of_several_processes_none_ends_alone() -> None:
    """Where they may not all be at one place, a process among several goes on; where they are, all end."""
    journal = Journal(interrupted=lambda: True, agree=lambda own: own)
    journal.go_on(together=False)
    with pytest.raises(TimeIsUpError):
        journal.go_on()
    with pytest.raises(TimeIsUpError):
        journal.part("").go_on()
    journal.part("").go_on(together=False)
