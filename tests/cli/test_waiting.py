"""Nothing is read whose end may never come: a pipe, a device, a link to one."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.oracles.program import run


def pipe(path: Path) -> None:
    os.mkfifo(path)


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights, data, a target file, and folders that one file is missing in."""
    save_file({"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2)}, tmp_path / "m.safetensors")
    np.savez(tmp_path / "d.npz", x=np.ones((3, 2), "f4"), y=np.zeros(3, "i8"))
    (tmp_path / "t.toml").write_text(
        'checkpoint = "m.safetensors"\nmodel = "auto"\ndata = "d.npz"\nloss = "cross_entropy"\n'
    )
    (tmp_path / "images" / "a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a" / "1.png")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "x.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    return tmp_path


CASES = {
    "x.safetensors": ["info", "x.safetensors"],
    "x.pt": ["info", "x.pt"],
    "x.toml": ["info", "x.toml"],
    "x.npz": ["hessian", "t.toml", "--data", "x.npz"],
    "x.csv": ["hessian", "t.toml", "--data", "x.csv"],
    "x.parquet": ["hessian", "t.toml", "--data", "x.parquet"],
    "x.state": ["hessian", "t.toml", "--state", "x.state"],
    "x.opt": ["hessian", "t.toml", "--matrix", "preconditioned", "--optimizer", "x.opt"],
    "x.json": ["check", "t.toml", "--baseline", "x.json"],
    "images/a/2.png": ["hessian", "t.toml", "--data", "images"],
    "shards/b.safetensors": ["info", "shards/x.index.json"],
    "bert/tokenizer.json": ["hessian", "bert", "--data", "d.npz"],
    "w/model.safetensors": ["info", "w"],
    "pyproject.toml": ["info", "m.safetensors"],
}


@pytest.mark.parametrize("make", [pipe, pytest.param(zeros, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", CASES)
def test_what_is_no_regular_file_is_refused(
    name: str, make: Callable[[Path], None], folder: Path
) -> None:
    """Every file that is read, where it is a pipe or a link to a device: a sentence and exit code 2."""
    (folder / name).parent.mkdir(exist_ok=True)
    make(folder / name)
    done = run(*CASES[name], cwd=folder, XDG_CACHE_HOME=str(folder / "cache"))
    if name == "pyproject.toml":
        assert done.returncode == 0  # it is not asked for, and left alone
        return
    assert done.returncode == 2, done.stderr
    assert "not a regular file" in done.stderr


@pytest.mark.parametrize("arguments", [["info", "-"], ["hessian", "t.toml", "--data", "-"]])
def test_standard_input_is_no_file(arguments: list[str], folder: Path) -> None:
    """Files are read by place and more than once: '-' is refused at once, with what to do."""
    done = run(*arguments, cwd=folder, XDG_CACHE_HOME=str(folder / "cache"))
    assert done.returncode == 2
    assert "standard input" in done.stderr
