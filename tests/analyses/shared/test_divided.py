"""What a question says of weights that may be divided unasked."""

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.question import Question
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import CurvError
from curvcli.loading.models.divided import Division
from curvcli.loading.spec import TargetSpec
from tests.conftest import SAMPLES


@pytest.mark.parametrize(
    ("question", "options", "wanted"),
    [
        ("hessian", {"top": 5, "bottom": 2}, 7),
        ("density", {"outliers": 4}, 4),
        ("trace", {"deflate": 3}, 3),
        ("hessian", {"matrix": "preconditioned"}, None),
        ("saddle", {}, 4),
        ("step", {"pairs": 6}, 12),
        ("step", {"save": "x"}, None),
        ("landscape", {"along": ["adam"]}, None),
        ("jacobian", {}, None),
    ],
)
def test_how_many_vectors_it_will_ask_for(
    question: str, options: dict[str, Any], wanted: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known to what divides the network, before it is read; None where the question needs the whole."""
    told: list[int | None] = []

    def settle(_self: Division, _checkpoint: Any, _device: Any, wanted: int | None) -> None:
        told.append(wanted)
        raise CurvError("seen", "")

    monkeypatch.setattr(Division, "settle", settle)
    path = str(SAMPLES / "digits_mlp.safetensors")
    subject = Subject(TargetSpec(checkpoint=path, model="x:Y", data="x.npz", loss="mse"))
    subject.share_among(SimpleNamespace(size=2, rank=0, parted=False))  # type: ignore[arg-type]
    asked: Question = import_module(f"curvcli.analyses.{question}.command").QUESTION
    with pytest.raises(CurvError, match="seen"):
        asked.ask(subject, options, Journal(), "here")
    assert told == [wanted]
