"""A failed allocation is called by its name wherever it happens, and what is too large is not begun."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from curvcli.errors import MemoryLimitError
from curvcli.machine.memory import check_fits, not_of_memory, out_of_memory
from tests.oracles.faults import Allocation
from tests.oracles.program import ROOT, invoke


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2))
    save_file(net.state_dict(), "m.safetensors")
    torch.save(net.state_dict(), "m.pt")
    np.savez("d.npz", x=np.ones((4, 2), "f4"), y=np.arange(4) % 2)
    Path("t.toml").write_text(
        'checkpoint = "m.safetensors"\nmodel = "auto"\ndata = "d.npz"\nloss = "cross_entropy"\n'
    )
    return tmp_path


# Where a smaller piece takes over, the answer comes all the same.
COMMANDS = [
    "info", "hessian", "trace", "density", "saddle", "taylor", "step", "backprop", "gradients", "jacobian",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_failed_allocation_is_no_defect(command: str, folder: Path) -> None:
    """Whichever operation it hits: an answer, or exit code 3; never a defect, never a damaged file."""
    for k in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 300):
        with Allocation(k):
            done = invoke(command, "t.toml" if command != "info" else "m.pt", "--quiet")
        assert done.exit_code in (0, 3), (k, done.stderr, done.exception)
        if done.exit_code == 3:
            assert "memory" in done.stderr.lower(), (k, done.stderr)


@contextmanager
def raising(target: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(target, fail)
        yield


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("8 bytes"), torch.OutOfMemoryError("CUDA out of memory"), OSError(12, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: not enough memory"), RuntimeError("std::bad_alloc"),
    ],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("torch.load", ["info", "m.pt"]),
        ("numpy.load", ["hessian", "t.toml"]),
        ("zipfile.ZipFile.infolist", ["info", "m.pt"]),
        ("curvcli.loading.models.guess.PlainNetwork.__init__", ["hessian", "t.toml"]),
        ("curvcli.objective.checks._evaluated", ["hessian", "t.toml"]),
    ],
)
def test_a_reader_that_runs_out_of_memory_says_so(
    target: str,
    arguments: list[str],
    error: BaseException,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before it is taken for a damaged file or a wrong model."""
    with raising(target, error, monkeypatch):
        done = invoke(*arguments)
    assert done.exit_code == 3, (done.stderr, done.exception)
    assert "memory" in done.stderr


def test_one_place_tells_a_lack_of_memory() -> None:
    """By its kind, its words, or what it came from; anything else passes."""
    cause = ValueError("x")
    cause.__cause__ = MemoryError()
    assert out_of_memory(cause)
    not_of_memory(RuntimeError("shapes do not fit"))
    with pytest.raises(MemoryLimitError):
        not_of_memory(cause)
    with pytest.raises(MemoryLimitError, match="it takes"):
        check_fits(1e17, None, "it")


def expanded(folder: Path) -> list[str]:
    torch.save({"0.weight": torch.ones(1).expand(1 << 14, 1 << 14)}, folder / "big.pt")
    return ["hessian", "big.pt", "--model", "auto", "--loss", "mse", "--data", "d.npz"]


def images(folder: Path) -> list[str]:
    (folder / "images" / "a").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (4000, 4000)).save(folder / "images" / "a" / f"{number}.png")
    return ["hessian", "t.toml", "--data", "images"]


def repeated(folder: Path) -> list[str]:
    torch.save(
        {"x": torch.ones(1, 2).expand(1 << 27, 2), "y": torch.zeros(1).expand(1 << 27)},
        folder / "x.pt",
    )
    return ["hessian", "t.toml", "--data", "x.pt"]


def table(folder: Path) -> list[str]:
    row = ",".join(["1"] * 1000) + "\n"
    with (folder / "x.csv").open("w") as file:
        file.write(",".join(["y", *(f"c{i}" for i in range(999))]) + "\n")
        file.writelines(row for _ in range(10_000))  # 20 MB of text, a gigabyte of cells
    return ["hessian", "t.toml", "--data", "x.csv"]


def parquet(folder: Path) -> list[str]:
    pq.write_table(
        pa.table({name: np.zeros(10_000_000) for name in ("y", "a")}), folder / "x.parquet"
    )
    return ["hessian", "t.toml", "--data", "x.parquet"]


@pytest.mark.parametrize("make", [expanded, images, repeated, table, parquet])
def test_what_does_not_fit_is_not_begun(make: Callable[[Path], list[str]], folder: Path) -> None:
    """Small files that would become large: counted against --memory before anything is made."""
    done = invoke(*make(folder), "--memory", "800MB")
    assert done.exit_code == 3, (done.stderr, done.exception)
    assert "are left" in done.stderr


def test_info_measures_in_blocks(folder: Path) -> None:
    """The peak of the process is far below the tensor: its blocks are read one by one."""
    size = 1 << 29
    header = json.dumps({"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}})
    with Path("big.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header.encode())
        file.truncate(8 + len(header) + size)  # zeros that take no room on the disk
    code = (
        "import torch\nfrom curvcli.machine.device import peak_memory\nfrom tests.oracles.program import answer\n"
        "before = peak_memory(torch.device('cpu'))\ncode, found = answer('info', 'big.safetensors')\n"
        "print(code, found['result']['tensors'][0]['norm'], peak_memory(torch.device('cpu')) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    exit_code, norm, peak = done.stdout.split()
    assert (exit_code, norm) == ("0", "0.0")
    assert int(peak) < 200e6  # a few blocks of 16 MB, and what is imported on the way


def test_a_file_that_is_cut_while_it_is_read(folder: Path) -> None:
    """A sentence, not a signal."""
    from curvcli.errors import CheckpointError
    from curvcli.loading.checkpoints.formats import open_checkpoint

    checkpoint = open_checkpoint(folder / "m.safetensors")
    os.truncate(folder / "m.safetensors", (folder / "m.safetensors").stat().st_size - 8)
    with pytest.raises(CheckpointError, match="was cut while it was read"):
        list(checkpoint.items())
