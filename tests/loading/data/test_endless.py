"""Data that never ends is read for half of the time that is given, and the answer is of what was read."""

import contextlib
import time
from pathlib import Path

import pytest

import curvcli
from curvcli.errors import NoAnswerError
from curvcli.loading.data.batches import read_batches

_SOURCE = """
import itertools, time
import torch

def net():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)

def slow():
    for _ in itertools.count():
        time.sleep(0.2)
        yield torch.randn(4, 3), torch.randint(0, 2, (4,))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "endless.py").write_text(_SOURCE)
    return tmp_path


def test_reading_ends_where_a_reason_is_given(place: Path) -> None:
    reasons = iter([None, None, "timeout"])
    assert len(read_batches("endless.py:slow", stop=lambda: next(reasons))) == 3


def test_a_timeout_bounds_an_endless_loader(place: Path) -> None:
    began = time.monotonic()
    subject = curvcli.load(model="endless.py:net", data="endless.py:slow", loss="cross_entropy")
    # On a busy machine nothing is left to compute in.
    with contextlib.suppress(NoAnswerError):
        curvcli.analyse("hessian", subject, timeout="4s", top=1, bottom=0)
    assert any("while data was read" in note for note in subject.notes)
    # Without the limit it would go on for ever.
    assert time.monotonic() - began < 120
