"""A saved run is whole or refused: killed at any moment, with bits flipped, or made of something else."""

import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from curvcli.errors import CurvError
from curvcli.linalg.lanczos.factorization import LanczosState, start
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.lanczos.state import _digest, load_state, save_state

N, ROOM = 200, 40


def operator() -> Any:
    generator = torch.Generator().manual_seed(0)
    a_NN = torch.randn(N, N, generator=generator, dtype=torch.float64)
    a_NN = a_NN + a_NN.T
    return SimpleNamespace(n=N, dtype=a_NN.dtype, device=a_NN.device, matvec=lambda v: a_NN @ v)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The state of a run that was ended early."""
    op = operator()
    state = start(op, ROOM, seed=0)
    lanczos(op, Wanted(5, 3), state=state, max_matvecs=60)
    save_state(tmp_path / "run.state", state, "print")
    return tmp_path / "run.state"


def test_killed_at_a_random_moment_nothing_saved_is_lost(tmp_path: Path) -> None:
    """Whenever the process dies, the file is a whole state that is no older than the last one that was written."""
    op, path, random_ = operator(), tmp_path / "run.state", random.Random(0)
    reference = lanczos(op, Wanted(5, 3), state=start(op, ROOM, seed=0))
    for _ in range(100):
        path.unlink(missing_ok=True)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            _run_and_save(op, path, writer)
        os.close(writer)
        done = os.read(reader, 1)  # the first state is there
        time.sleep(random_.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(reader, 1 << 16):
            done = more
        os.close(reader)
        state = load_state(path, op, ROOM, "print")
        assert state.matvecs >= done[-1]
    found = lanczos(op, Wanted(5, 3), state=state)
    assert found.status == "converged"
    assert found.values_K == pytest.approx(reference.values_K, abs=1e-2)


def _run_and_save(op: Any, path: Path, writer: int) -> None:
    """In a child: save after every product, and say through the pipe that the state of so many products is there."""
    state: LanczosState = start(op, ROOM, seed=0)

    def stop() -> None:
        if state.processed:
            save_state(path, state, "print")
            os.write(writer, bytes([min(255, state.matvecs)]))

    while True:
        lanczos(op, Wanted(5, 3), tol=1e-14, state=state, max_matvecs=250, stop=stop)


def test_a_flipped_bit_is_refused(saved: Path, tmp_path: Path) -> None:
    """Anywhere in the file: no eigenvalue of 1e299 comes out of it."""
    whole, random_ = saved.read_bytes(), random.Random(1)
    bad = tmp_path / "bad.state"
    for _ in range(200):
        content = bytearray(whole)
        place = random_.randrange(len(content))
        content[place] ^= 1 << random_.randrange(8)
        bad.write_bytes(content)
        with pytest.raises(CurvError):
            load_state(bad, operator(), ROOM, "print")


def rewritten(saved: Path, name: str, tensor: Tensor) -> Path:
    """The state with one tensor changed and a right checksum."""
    with safe_open(saved, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        metadata = dict(file.metadata())
    del metadata["sha256"]
    tensors[name] = tensor
    metadata["sha256"] = _digest(tensors, metadata)
    save_file(tensors, saved, metadata)
    return saved


@pytest.mark.parametrize("name", ["basis", "t", "left_out"])
@pytest.mark.parametrize("shape", [(0, 0), (3, 3), (1, N), (N,)])
def test_shapes_that_do_not_belong_together_are_refused(
    name: str, shape: tuple[int, ...], saved: Path
) -> None:
    """A state that was made by something else."""
    bad = rewritten(saved, name, torch.ones(shape, dtype=torch.float64))
    with pytest.raises(CurvError, match="holds no state of a run"):
        load_state(bad, operator(), ROOM, "print")


def test_a_basis_of_zeros_is_no_state(saved: Path) -> None:
    """It would converge at once, to nothing."""
    with safe_open(saved, framework="pt") as file:
        basis = file.get_tensor("basis")
    with pytest.raises(CurvError, match="of length 1"):
        load_state(rewritten(saved, "basis", torch.zeros_like(basis)), operator(), ROOM, "print")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_file_is_a_safetensors_file(dtype: torch.dtype, tmp_path: Path) -> None:
    """The library that has the format reads from it what was in the state, and tensors lie at whole entries."""
    op = SimpleNamespace(n=33, dtype=dtype, device=torch.device("cpu"), matvec=lambda v: v)
    state = start(op, 7, seed=0)
    path = tmp_path / "run.state"
    save_state(path, state, "print")
    read = load_file(path)
    assert torch.equal(read["basis"], state.basis.whole())
    assert torch.equal(read["generator"], state.generator.get_state())
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["fingerprint"] == "print"
    assert load_state(path, op, 7, "print").basis.size == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_saving_takes_no_second_basis(tmp_path: Path) -> None:
    """Of 200 MB of vectors less than a tenth is copied on the way."""

    def own() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

    op = SimpleNamespace(n=5_000_000, dtype=torch.float32, device=torch.device("cpu"))
    state = start(op, 10, seed=0)
    for _ in range(9):
        state.basis.append(state.basis[0])
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = own()
    save_state(tmp_path / "run.state", state, "print")
    assert own() - before < 20e6
