"""`--state` of density, trace and track: killed and started again, a command has the answer of one run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.oracles.program import ROOT, answer

MODELS = ROOT / "sample_models"
COMMANDS = {
    "density": [
        str(MODELS / "digits_mlp.toml"), "--steps", "12", "--probes", "3", "--outliers", "4",
        "--max-probes", "6",
    ],
    "whole": [str(MODELS / "saddle.toml")],
    "trace": [str(MODELS / "digits_mlp.toml"), "--max-matvecs", "90", "--split"],
    "landscape": [str(MODELS / "digits_mlp.toml"), "--along", "eigen", "--points", "9"],
    "track": [
        str(MODELS / "digits_mlp.toml"), str(MODELS / "digits_mlp.safetensors"),
        str(MODELS / "digits_mlp.safetensors"), "--probes", "4",
    ],
}  # fmt: skip


def command(name: str) -> list[str]:
    return ["density" if name == "whole" else name, *COMMANDS[name]]


def told(*arguments: str) -> tuple[dict[str, Any], int]:
    """The result with findings and notes, without what a state adds, and the products that were made."""
    envelope = answer(*arguments)[1]
    notes = [n for n in envelope["notes"] if "went on from" not in n and "damaged" not in n]
    for point in envelope["result"].get("points", []):
        point.pop("seconds", None)
    shown = {"result": envelope["result"], "findings": envelope["findings"], "notes": notes}
    return shown, envelope["cost"]["matvecs"]


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_state_changes_no_digit(name: str, tmp_path: Path) -> None:
    """Without a state, with a new one, and from one that is whole; the last with a fraction of the products."""
    state = ["--state", str(tmp_path / "s")]
    plain, products = told(*command(name))
    assert told(*command(name), *state) == (plain, products)
    again, few = told(*command(name), *state)
    if name == "track":  # products that were not made are not counted there
        for shown in (plain, again):
            for point in shown["result"]["points"]:
                del point["trace_matvecs"]
    assert again == plain
    assert few < products / 3
    content = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(content[: len(content) // 2])
    assert told(*command(name), *state)[0]["findings"] == plain["findings"]


@pytest.mark.parametrize("name", ["density", "track"])
def test_a_killed_command_goes_on(name: str, tmp_path: Path) -> None:
    """SIGKILL after a random time, until a run ends: the answer is that of one run."""
    state, random_ = tmp_path / "s", random.Random(0)
    arguments = [*command(name), "--state", str(state)]
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-m", "curvcli", *arguments, "--format", "json"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        grown = state.stat().st_size if state.exists() else 0
        while child.poll() is None and (not state.exists() or state.stat().st_size <= grown):
            time.sleep(0.005)
        time.sleep(random_.uniform(0, 0.2))
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
        child.wait()
    plain, products = told(*command(name))
    again, few = told(*arguments)
    assert again["result"].keys() == plain["result"].keys()
    figures = ("points",) if name == "track" else ("moments", "outliers", "wasserstein", "probes")
    for key in figures:
        for shown in (plain, again):
            for point in shown["result"].get("points", []):
                point.pop("trace_matvecs", None)
        assert again["result"][key] == plain["result"][key]
    assert few < products


@pytest.mark.parametrize("name", ["density", "trace", "track"])
def test_something_else_is_refused(name: str, tmp_path: Path) -> None:
    """A file that is no state, or that of another network, is named and left as it is."""
    (tmp_path / "s").write_text("my thesis")
    code, envelope = answer(*command(name), "--state", str(tmp_path / "s"))
    assert code == 2
    assert "not a saved state" in str(envelope)
    assert (tmp_path / "s").read_text() == "my thesis"
