"""`--log`: the figures of an answer in a tracker."""

import json
from pathlib import Path

import pytest

from tests.oracles.checkpoints import descent
from tests.oracles.program import run


def test_track_and_check_write_their_figures(samples: Path, tmp_path: Path) -> None:
    """The same numbers as in the JSON, a line a checkpoint and one for the rules."""
    target, place = str(samples / "digits_mlp.toml"), tmp_path / "a.jsonl"
    done = run("track", target, "--log", f"jsonl:{place}", "--format", "json")
    (point,) = json.loads(done.stdout)["result"]["points"]
    (line,) = [json.loads(t) for t in place.read_text().splitlines()]
    assert line["track.lambda_max.value"] == point["lambda_max"]["value"]
    assert line["track.loss"] == point["loss"]
    run("check", target, "--rule", "info.nonfinite == 0", "--no-cache", "--log", f"jsonl:{place}")
    last = json.loads(place.read_text().splitlines()[-1])
    assert last == {"step": 0, "info.nonfinite": 0.0, "check.violated": 0.0}


def test_a_report_writes_the_figures_of_all_its_analyses(samples: Path, tmp_path: Path) -> None:
    """The same numbers as in the JSON, at the step in the checkpoint's name; of a training run its course before."""
    place, target = tmp_path / "a.jsonl", str(samples / "linear_regression.toml")
    series = descent(tmp_path)
    done = run(
        "report", target, str(series), "--analysis", "hessian", "--analysis", "taylor", "--log", f"jsonl:{place}",
        "--format", "json",
    )  # fmt: skip
    result = json.loads(done.stdout)["result"]
    lines = [json.loads(t) for t in place.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4, 6, 8, 10, 10]
    assert lines[0]["track.loss"] == result["overall"]["result"]["points"][0]["loss"]
    hessian, taylor = (part["result"] for part in result["parts"])
    assert lines[-1]["hessian.top[0].value"] == hessian["top"][0]["value"]
    assert lines[-1]["taylor.critical_learning_rate"] == taylor["critical_learning_rate"]


@pytest.mark.parametrize(
    ("text", "told"), [("wandv", "Did you mean 'wandb'?"), ("", "there is no tracker ''")]
)
def test_a_wrong_tracker_is_told_before_anything_runs(samples: Path, text: str, told: str) -> None:
    """As a usage error."""
    done = run("check", str(samples / "digits_mlp.toml"), "--log", text)
    assert done.returncode == 2
    assert told in done.stderr
