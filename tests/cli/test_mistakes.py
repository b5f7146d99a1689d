"""Common mistakes with files and data: the answer says what to do about this one."""

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.oracles.program import answer, invoke


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: Path) -> Path:
    """A working directory with the digits in several unlucky forms."""
    monkeypatch.chdir(tmp_path)
    with np.load(samples / "digits.npz") as archive:
        x, y = archive["x"], archive["y"]
    np.savez("digits.npz", x=x, y=y)
    np.savez("unlabelled.npz", x=x)
    np.savez("whole.npz", x=(16 * x).astype(np.int64), y=y)
    np.savez("from_one.npz", x=x, y=y + 1)
    with Path("bare.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([*row, label] for row, label in zip(x[:50], y, strict=False))
    return tmp_path


MISTAKES = [
    ("unlabelled.npz", "cross_entropy", "add them to the data as an array called y"),
    ("whole.npz", "cross_entropy", "save them as float32, x.astype('float32')"),
    ("from_one.npz", "cross_entropy", "count from 0: y - 1"),
    ("bare.csv", "cross_entropy", "begins with a row of numbers, not with the names of the columns"),
    ("digts.npz", "cross_entropy", "there is no data file 'digts.npz'. Did you mean 'digits.npz'?"),
    (".", "cross_entropy", "or name a file: --data bare.csv"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "loss", "match"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_data(place: Path, samples: Path, data: str, loss: str, match: str) -> None:
    """Labels that are missing or count from one, whole numbers, no heading, a misspelt name, a folder."""
    weights, model = samples / "digits_mlp.safetensors", f"{samples / 'models.py'}:DigitsMLP"
    done = invoke("gradients", str(weights), "--model", model, "--data", data, "--loss", loss)
    assert done.exit_code == 2, done.output
    assert match in done.stderr


def test_a_misspelt_target_file(samples: Path) -> None:
    """The file beside it that was meant is named; where none is alike, none is."""
    done = invoke("gradients", str(samples / "digits_mpl.toml"))
    assert done.exit_code == 2
    assert f"Did you mean {str(samples / 'digits_mlp.toml')!r}?" in done.stderr
    assert "Did you mean" not in invoke("gradients", str(samples / "another.toml")).stderr


def test_data_in_the_place_of_weights(place: Path) -> None:
    """An archive of arrays is no damaged checkpoint."""
    done = invoke("info", "digits.npz")
    assert done.exit_code == 2
    assert "digits.npz is a file of data (.npz), not a checkpoint" in done.stderr
    assert "damaged" not in done.stderr


def test_nll_of_logits_is_said_whole(samples: Path) -> None:
    """No bracket of a threshold is left over, and the name of the loss stays as it is written."""
    _, told = answer("gradients", str(samples / "digits_mlp.toml"), "--loss", "nll")
    sentence = told["verdict"]["sentence"]
    assert sentence.startswith("The loss nll needs log-probabilities")
    assert sentence.endswith("or use cross_entropy.")


def test_check_without_a_target() -> None:
    """Nothing is judged where nothing is named."""
    done = invoke("check")
    assert done.exit_code == 2
    assert (
        "nothing to check: no target is given\n  name one: curvcli check model.toml" in done.stderr
    )


def test_a_pattern_that_lacks_its_star(samples: Path) -> None:
    """Names of parameters are matched whole; one that matches nothing is no beginning of them."""
    target = str(samples / "digits_mlp.toml")
    assert (
        "write 'fc*' for all that begin with it"
        in invoke("hessian", target, "--params", "fc").stderr
    )
    assert "write" not in invoke("hessian", target, "--params", "conv*").stderr
