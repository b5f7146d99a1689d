"""Krylov vectors in a file or on the host give the digits of those in memory, and leave nothing behind."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from curvcli.errors import OutputError
from curvcli.linalg.lanczos.factorization import start
from curvcli.linalg.lanczos.lanczos import LanczosResult, lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.stochastic.krylov import krylov
from curvcli.linalg.storage import HOST, Rows, move_to_file
from curvcli.machine.device import used_memory
from tests.oracles.matrices import Prescribed


class Elsewhere(Prescribed):
    """Whose Krylov vectors are kept at a place."""

    offload: str | None = None


def matrix(place: str | None, dtype: torch.dtype = torch.float64) -> Elsewhere:
    spectrum = np.concatenate([np.linspace(-1, 1, 197), [3.0, 5.0, 9.0]])
    op = Elsewhere(spectrum, dtype=dtype)
    op.offload = place
    return op


def ended(place: str | None, dtype: torch.dtype) -> LanczosResult:
    """With so few vectors that it is restarted."""
    op = matrix(place, dtype)
    return lanczos(op, Wanted(3, 1), state=start(op, 12, 0), recheck=5, max_matvecs=300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_digits_are_those_of_memory(dtype: torch.dtype, tmp_path: Path) -> None:
    """To the bit, through restarts and a look for copies; the eigenvalues are the prescribed ones."""
    plain, kept, host = (ended(place, dtype) for place in (None, str(tmp_path), HOST))
    assert plain.restarts > 0
    for found in (kept, host):
        assert found.values_K.tolist() == plain.values_K.tolist()
        assert torch.equal(found.vectors_KN, plain.vectors_KN)
    # Converged to 1e-3 of each, which the residual squared over the gap of 2 undercuts.
    assert np.allclose(kept.values_K[:3], [9, 5, 3], rtol=1e-3)
    assert list(tmp_path.iterdir()) == []


def test_a_gauss_rule_too(tmp_path: Path) -> None:
    """`krylov` has the same matrix T."""
    plain, kept = (
        krylov(matrix(place), 20, torch.Generator().manual_seed(0))
        for place in (None, str(tmp_path))
    )
    assert np.array_equal(plain.t_LL, kept.t_LL)


def test_vectors_are_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many bytes of it are taken as vectors were written, each before it is written to."""
    taken: list[tuple[int, int]] = []
    allocate = os.posix_fallocate

    def counted(file: int, offset: int, size: int) -> None:
        taken.append((offset, size))
        assert os.fstat(file).st_size == 12 * 200 * 8
        allocate(file, offset, size)
        assert os.fstat(file).st_blocks * 512 >= offset + size

    monkeypatch.setattr(os, "posix_fallocate", counted)
    ended(str(tmp_path), torch.float64)
    assert taken[:3] == [(0, 1600), (1600, 1600), (3200, 1600)]


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In words, before anything is written that the system could not keep."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="No space left on device"):
        ended(str(tmp_path), torch.float64)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        ended(str(tmp_path / "none"), torch.float64)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell them")
def test_pages_of_the_file_are_not_memory_in_use(tmp_path: Path) -> None:
    """Of 64 MB of rows in a file, all of them resident, hardly anything counts."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    cpu = torch.device("cpu")
    before, there = used_memory(cpu), resident()
    kept = Rows(4, 4 << 20, torch.float32, cpu, str(tmp_path))
    for i, row_N in enumerate(kept.data_MN):
        kept.reserve(i)
        row_N.fill_(1.0)
    # An eighth for what the interpreter takes and gives back meanwhile.
    assert resident() - there > 56 << 20
    assert abs(used_memory(cpu) - before) < 8 << 20
    assert float(kept.data_MN.sum()) == 16 << 20


def test_weights_are_moved_to_the_file(tmp_path: Path) -> None:
    """With their values, where kernels expect them; not those that share their memory. The file has no name."""
    torch.manual_seed(0)
    whole = torch.randn(30)
    weights = [torch.randn(7, 3), torch.randn(5).double(), torch.randn(()), torch.randn(0, 2)]
    given, places = [w.clone() for w in weights], [w.data_ptr() for w in weights]
    shared = whole[:10]
    at = shared.data_ptr()
    move_to_file([*weights, shared], str(tmp_path))
    for weight, value, place in zip(weights, given, places, strict=True):
        assert weight.data_ptr() % 64 == 0
        assert torch.equal(weight, value)
        assert weight.numel() == 0 or weight.data_ptr() != place
    weights[0].fill_(2.0)
    assert torch.equal(weights[2], given[2])
    assert shared.data_ptr() == at
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux says")
def test_a_state_is_read_to_where_vectors_are_kept(tmp_path: Path) -> None:
    """In a process of its own, whose memory nothing was in before: no more than five of 20 vectors of 8 MB."""
    code = f"""
import threading, time, torch
from pathlib import Path
from curvcli.linalg.lanczos.factorization import start
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.lanczos.state import load_state, save_state

class Diagonal:
    n, dtype, device, offload = 2_000_000, torch.float32, torch.device("cpu"), {str(tmp_path)!r}
    values = torch.linspace(0, 1, n)
    def matvec(self, v):
        return self.values * v

def own():
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024

state = start(Diagonal(), 30, 0)
lanczos(Diagonal(), Wanted(1, 0), tol=1e-12, state=state, max_matvecs=19, recheck=0)
path = Path({str(tmp_path / "s")!r})
save_state(path, state, "key")
before, most = own(), [0.0]
def watch():
    while True:
        most[0] = max(most[0], own())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
again = load_state(path, Diagonal(), 30, "key")
print(most[0] - before)
assert again.basis.size == state.basis.size == 20
assert torch.equal(again.basis.rows, state.basis.rows)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert float(done.stdout) < 40
