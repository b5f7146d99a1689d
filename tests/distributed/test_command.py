"""Commands under several processes: one answer, from the first; what is lost is named; signals end all."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curvcli.loading.processes import _answers_alone
from tests.conftest import SAMPLES
from tests.distributed.test_ranks import started

_LONG = ["density", str(SAMPLES / "bytes_gpt.toml"), "--probes", "200", "--steps", "50"]
# Bytes of two products of that network.
_SOME = 600_000


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "curvcli", *arguments], capture_output=True, text=True, timeout=200, check=False,
        env={k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")},
    )  # fmt: skip


def values(answer: dict[str, Any]) -> list[float]:
    return [pair["value"] for pair in answer["result"]["top"]]


@pytest.mark.timeout(300)
def test_one_answer_as_of_one_process(tmp_path: Path) -> None:
    """By --ranks: the same eigenvalues, files and state written once, the exchange in `cost`."""
    target = str(SAMPLES / "digits_mlp.toml")
    common = ["hessian", target, "--top", "3", "--format", "json"]
    one = json.loads(run(*common).stdout)
    state, vectors = tmp_path / "state", tmp_path / "v.safetensors"
    several = run(*common, "--ranks", "2", "--state", str(state), "--save-vectors", str(vectors))
    assert (several.returncode, several.stderr) == (0, "")
    answer = json.loads(several.stdout)
    assert values(answer) == pytest.approx(values(one), rel=1e-5)
    assert answer["cost"]["processes"]["count"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state", "v.safetensors"]
    again = json.loads(run(*common, "--ranks", "2", "--state", str(state)).stdout)
    assert values(again) == pytest.approx(values(one), rel=1e-5)
    assert again["cost"]["matvecs"] < answer["cost"]["matvecs"]


@pytest.mark.timeout(200)
def test_an_error_of_all_is_said_once() -> None:
    done = run("hessian", str(SAMPLES / "digits_mlp.toml"), "--params", "nothing*", "--ranks", "2")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "c10d" not in done.stderr  # of those that wait for one that has ended
    assert "nothing" in done.stderr


@pytest.mark.timeout(200)
def test_fewer_batches_than_processes() -> None:
    """Batches that may not be cut are shared out whole: no process may be left without one."""
    done = run("hessian", str(SAMPLES / "digits_cnn.toml"), "--train-mode", "--ranks", "2")
    assert done.returncode == 2
    assert "2 processes share 1 batches that may not be cut" in done.stderr


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("hessian", "--ranks", "0"), "--ranks 0 is no number of processes"),
        (("track", "--watch", "--ranks", "2"), "--watch follows a run with one process"),
    ],
)
def test_what_cannot_be_shared_is_refused(command: tuple[str, ...], told: str) -> None:
    done = run(command[0], str(SAMPLES / "digits_mlp.toml"), *command[1:])
    assert done.returncode == 2
    assert told in done.stderr


@contextlib.contextmanager
def working(folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes in the middle of a long run: some of its products are in the first one's state."""
    state = folder / "state"
    command = ["-m", "curvcli", *_LONG, "--format", "json", "--state", str(state)]
    processes = started(2, command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 120
        while not (state.exists() and state.stat().st_size > _SOME) and time.monotonic() < until:
            time.sleep(0.1)
        assert [p.poll() for p in processes] == [None, None]
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.full)]
)
def test_a_lost_process_is_named(number: signal.Signals, tmp_path: Path) -> None:
    """Killed or stopped: the other one names it and ends with 3."""
    with working(tmp_path) as (first, second):
        second.send_signal(number)
        out, err = first.communicate(timeout=60)
    assert first.returncode == 3
    assert "process 1 of 2 was lost" in err
    error = json.loads(out)["error"]
    assert (error["code"], error["exit_code"]) == ("lost-process", 3)


def test_what_is_printed_while_processes_meet_is_no_part_of_the_answer(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Libraries below Python write to the descriptor: gloo of torch 2.8 does."""
    with _answers_alone():
        os.write(1, b"connected\n")
    os.write(1, b"{}")
    assert capfd.readouterr() == ("{}", "connected\n")


@pytest.mark.timeout(200)
def test_a_signal_to_one_ends_all_with_what_is_known(tmp_path: Path) -> None:
    with working(tmp_path) as (first, second):
        second.send_signal(signal.SIGTERM)
        out, _ = first.communicate(timeout=100)
        second.communicate(timeout=30)
        assert (first.returncode, second.returncode) == (3, 0)
    answer = json.loads(out)
    assert answer["complete"] is False
    assert answer["result"] is not None


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("digits_mlp", ["--batch-size", "31", "--max-batches", "3"]),
        ("digits_cnn", ["--train-mode", "--batch-size", "16", "--max-batches", "3"]),
    ],
)
def test_jacobians_are_shared_out(target: str, options: list[str]) -> None:
    """Samples, or whole batches where they depend on each other: in order, with the digits of one process."""
    command = ["jacobian", str(SAMPLES / f"{target}.toml"), *options, "--format", "json"]
    one, several = (json.loads(run(*command, *more).stdout) for more in ((), ("--ranks", "2")))
    a, b = (answer["result"] for answer in (one, several))
    assert [s["index"] for s in a["samples"]] == [s["index"] for s in b["samples"]]
    for x, y in zip(a["samples"], b["samples"], strict=True):
        # Pieces of other sizes are multiplied by other kernels: rounding of float32, amplified by the network.
        assert y["frobenius"] == pytest.approx(x["frobenius"], rel=1e-5)
        assert y["spectral"] == pytest.approx(x["spectral"], rel=1e-5)
    assert several["cost"]["processes"]["messages"] > 0
    assert several["complete"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", ["digits_mlp", "digits_cnn", "digits_lstm", "bytes_gpt"])
def test_gradients_are_shared_out(target: str) -> None:
    """Figures of every layer, dead units, noise, attention and time, as one process has them."""
    command = ["gradients", str(SAMPLES / f"{target}.toml"), "--max-batches", "1", "--batch-size", "96"]  # fmt: skip
    one, several = (
        json.loads(run(*command, "--format", "json", *more).stdout)
        for more in ((), ("--ranks", "2"))
    )
    close(one["result"], several["result"])
    assert several["cost"]["processes"]["messages"] > 0
    assert [f["rule"] for f in one["findings"]] == [f["rule"] for f in several["findings"]]


def close(one: Any, other: Any, where: str = "") -> None:
    """The same structure and words, and numbers that differ by float32 sums in another order."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            close(value, other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            close(*pair, f"{where}[{index}]")
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-12), where
    else:
        assert one == other, where


@pytest.mark.timeout(100)
def test_one_process_is_the_command_itself() -> None:
    """--ranks 1 starts no other process, which would start another one."""
    done = run(
        "hessian", str(SAMPLES / "linear_regression.toml"), "--ranks", "1", "--format", "json"
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["cost"]["processes"] is None
