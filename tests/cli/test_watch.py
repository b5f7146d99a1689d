"""`track --watch`: checkpoints are looked at as they come; Ctrl-C ends with the answer."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.oracles.program import ROOT, run


def test_checkpoints_are_followed_until_ctrl_c(samples: Path, tmp_path: Path) -> None:
    """Two come one after the other: a line for each on stderr, and the answer of both at the end."""
    folder = tmp_path / "run"
    folder.mkdir()
    weights = samples / "digits_mlp.safetensors"
    started = subprocess.Popen(
        [sys.executable, "-m", "curvcli", "track", "--watch", str(samples / "digits_mlp.toml"), str(folder),
         "--probes", "0", "--format", "json"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert started.stderr is not None
    shutil.copy(weights, folder / "step_1.safetensors")
    assert started.stderr.readline().startswith("step 1  loss 0.037")
    shutil.copy(weights, folder / "step_2.safetensors")
    assert started.stderr.readline().startswith("step 2  loss 0.037")
    time.sleep(0.5)
    started.send_signal(signal.SIGINT)
    out, error = started.communicate(timeout=60)
    assert started.returncode == 0, error
    points = json.loads(out)["result"]["points"]
    assert [p["step"] for p in points] == [1, 2]
    once = run("track", str(samples / "digits_mlp.toml"), str(folder), "--probes", "0", "--format", "json")  # fmt: skip
    again = json.loads(once.stdout)["result"]["points"]
    assert [p["lambda_max"]["value"] for p in points] == [p["lambda_max"]["value"] for p in again]


def test_a_directory_is_needed(samples: Path) -> None:
    """A target file alone has nothing that comes."""
    done = run("track", "--watch", str(samples / "digits_mlp.toml"))
    assert done.returncode == 2
    assert "none is named" in done.stderr
