"""A run that is killed, damaged or cut short goes on from its log, to the same bits; never from anything else."""

import errno
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curvcli.errors import CurvError
from curvcli.linalg import log_file, run_log
from curvcli.linalg.run_log import RunLog
from curvcli.linalg.stochastic.spectral_sums import Goal, Probes, estimate
from tests.oracles.matrices import Matrix

N = 600
GOAL = Goal(0.02, (np.abs,), max_steps=16, max_matvecs=300)


class Counted(Matrix):
    """A matrix that counts its products."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        a_NN = torch.randn(N, N, generator=generator, dtype=torch.float64)
        super().__init__(a_NN + a_NN.T)
        self.products = 0

    def matvec(self, v_N: torch.Tensor) -> torch.Tensor:
        self.products += 1
        return super().matvec(v_N)


def run(path: Path | None, stop: Any = lambda: None, goal: Goal = GOAL) -> tuple[list[float], int]:
    """All digits of an estimate, and the products that were made for it."""
    op, log = Counted(), RunLog(path, "print")
    generator = torch.Generator().manual_seed(1)
    found, _ = estimate(op, 8, goal, generator, stop=stop, log=log)
    log.close()
    return digits(found), op.products


def kept(path: Path) -> int:
    """Products and results in the file."""
    log = RunLog(path, "print")
    log.close()
    return log.found


def digits(found: Probes) -> list[float]:
    sums = found.trace(), found.square_sum(), found.sum_of(np.abs)
    return [x for s in sums for x in (s.value, s.standard_error)]


@pytest.fixture(scope="module")
def reference() -> tuple[list[float], int]:
    return run(None)


def test_a_whole_run_is_read_without_a_product(tmp_path: Path, reference: Any) -> None:
    """The second time every digit is there, and nothing is multiplied."""
    assert run(tmp_path / "s") == reference
    assert run(tmp_path / "s") == (reference[0], 0)


@pytest.mark.parametrize("at", [1, 5, 12, 30])
def test_a_run_that_was_cut_short_goes_on(tmp_path: Path, reference: Any, at: int) -> None:
    """No product is made twice, and the digits are those of one run."""
    looks = iter(range(10**6))
    _, before = run(tmp_path / "s", stop=lambda: "timeout" if next(looks) >= at else None)
    digits_after, after = run(tmp_path / "s")
    assert digits_after == reference[0]
    assert before + after == reference[1]


def test_killed_at_a_random_moment_only_the_product_under_way_is_lost(
    tmp_path: Path, reference: Any
) -> None:
    """SIGKILL at 100 moments, each run going on from the last until one ends: the same digits, nothing made twice."""
    path, random_ = tmp_path / "s", random.Random(0)
    for _ in range(100):
        if random_.random() < 0.2:
            path.unlink(missing_ok=True)
        before = kept(path)
        child = os.fork()
        if child == 0:
            run(path)
            os._exit(0)
        time.sleep(random_.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert kept(path) >= min(before, 1)
    assert run(path)[0] == reference[0]


@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_bit_or_a_torn_end_changes_no_digit(
    tmp_path: Path, reference: Any, seed: int, whole: bytes
) -> None:
    """What is behind the damage is made anew; a damaged header is refused."""
    random_, content = random.Random(seed), bytearray(whole)
    place = random_.randrange(len(content))
    if seed % 2:
        content[place] ^= 1 << random_.randrange(8)
    else:
        del content[place:]
    path = tmp_path / "s"
    path.write_bytes(content)
    if seed % 2 and place < 46:
        with pytest.raises(CurvError):
            run(path)
        return
    assert run(path)[0] == reference[0]
    assert run(path) == (reference[0], 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The log of a whole run."""
    path = tmp_path_factory.mktemp("log") / "s"
    run(path)
    return path.read_bytes()


def test_the_log_of_another_run_is_refused(tmp_path: Path) -> None:
    """Other weights or data; and a file that is something else stays as it is."""
    run(tmp_path / "s")
    with pytest.raises(CurvError, match="belongs to another run"):
        RunLog(tmp_path / "s", "another print")
    (tmp_path / "x").write_bytes(b"my thesis")
    with pytest.raises(CurvError, match="not a saved state"):
        RunLog(tmp_path / "x", "print")
    assert (tmp_path / "x").read_bytes() == b"my thesis"


def test_other_options_use_what_they_share(tmp_path: Path) -> None:
    """A run with another start has its own digits, whatever the log holds."""

    def other(path: Path | None) -> list[float]:
        log = RunLog(path, "print")
        found, _ = estimate(
            Counted(), 12, GOAL, torch.Generator().manual_seed(1), log=log
        )  # more vectors of Q
        log.close()
        return digits(found)

    run(tmp_path / "s")
    assert other(tmp_path / "s") == other(None)
    assert other(tmp_path / "s") == other(None)


def test_finished_steps_leave_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their products take no more place than what still counts; the digits stay."""
    many = Goal(1e-6, (np.abs,), max_steps=100, max_matvecs=900)
    found, products = run(tmp_path / "s", goal=many)
    assert (tmp_path / "s").stat().st_size > 8 * N * products
    (tmp_path / "s").unlink()
    monkeypatch.setattr(run_log, "DEAD_BYTES", 0)
    assert run(tmp_path / "s", goal=many) == (found, products)
    assert (tmp_path / "s").stat().st_size < 8 * N * products / 2
    assert run(tmp_path / "s", goal=many) == (found, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("at", [1, 4, 20])
def test_a_full_disk_ends_the_log_and_not_the_run(
    tmp_path: Path, reference: Any, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """What was written before stays whole, and a later run goes on from there."""
    looks, fsync = iter(range(10**6)), os.fsync
    monkeypatch.setattr(log_file, "SYNC_SECONDS", 0.0)
    monkeypatch.setattr(log_file, "SYNC_SHARE", 0.0)

    def full(descriptor: int) -> None:
        if next(looks) >= at:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert run(tmp_path / "s") == reference
    monkeypatch.undo()
    digits_after, after = run(tmp_path / "s")
    assert digits_after == reference[0]
    assert after < reference[1]
