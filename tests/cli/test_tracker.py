"""`--log`: the figures of an answer in a tracker."""

import json
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("text", "told"), [("wandv", "Did you mean 'wandb'?"), ("", "there is no tracker ''")]
)
def test_a_wrong_tracker_is_told_before_anything_runs(samples: Path, text: str, told: str) -> None:
    """As a usage error."""
    done = run("check", str(samples / "digits_mlp.toml"), "--log", text)
    assert done.returncode == 2
    assert told in done.stderr
