"""The rounding of products is measured within the memory: long vectors one by one, in float64 only where it fits."""

from typing import Any

import pytest
import torch
from torch import nn

from curvcli import Subject, analyse
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.double import twin_in_double
from curvcli.operators.curvature.rounding import product_error
from tests.conftest import MakeObjective

CERTIFIED = "curvcli.analyses.shared.spectrum.certified"


def asked(make_objective: MakeObjective, pairs: int) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(48, 5), torch.randint(3, (48,))
    subject = Subject(objective=make_objective(model, x, y))
    return analyse("hessian", subject, top=pairs, bottom=0)


@pytest.mark.parametrize("pairs", [2, 6])
def test_one_by_one_measures_the_same(
    pairs: int, make_objective: MakeObjective, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To what two products at once round otherwise than two alone: a tenth of a rounding."""
    counts: list[int] = []

    def counted(operator: Any, w_RN: torch.Tensor, *rest: Any) -> Any:
        counts.append(len(w_RN))
        return product_error(operator, w_RN, *rest)

    monkeypatch.setattr(f"{CERTIFIED}.product_error", counted)
    usual = asked(make_objective, pairs).result.top
    monkeypatch.setattr(f"{CERTIFIED}.PIECE", 1)
    long = asked(make_objective, pairs).result.top
    assert counts == [2, 1, 1]
    for one, other in zip(usual, long, strict=True):
        assert one.value == other.value
        assert other.residual == pytest.approx(one.residual, rel=0.1)


def test_without_room_for_float64_it_is_not_tried(
    make_objective: MakeObjective, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights' last digits are moved instead, which is said."""
    room: list[int] = []

    def short(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(Curvature, "room", lambda self: room[0])
            return twin_in_double(*arguments)

    monkeypatch.setattr("curvcli.operators.curvature.rounding.twin_in_double", short)
    n = 5 * 8 + 8 + 8 * 3 + 3
    room.append(n * 8 * (8 + 5))  # weights, vectors, gradients; and those of the second vector
    notes = asked(make_objective, 2).notes
    assert not [note for note in notes if "last digit" in note]
    room[0] -= 1
    notes = asked(make_objective, 2).notes
    assert [note for note in notes if "last digit" in note]
