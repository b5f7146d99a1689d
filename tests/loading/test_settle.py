"""A checkpoint that is being written is waited for, and never read in part."""

import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import curvcli
from curvcli.errors import CheckpointError
from curvcli.loading.settle import read_settled
from tests.oracles.program import ROOT, answer

MLP = str(ROOT / "sample_models" / "digits_mlp.toml")


def test_a_checkpoint_that_is_being_written_is_waited_for(tmp_path: Path, samples: Path) -> None:
    whole = (samples / "digits_mlp.safetensors").read_bytes()
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole[:1000])

    def write() -> None:
        with path.open("ab") as file:
            for first in range(1000, len(whole), 20_000):
                time.sleep(0.2)
                file.write(whole[first : first + 20_000])
                file.flush()

    writer = threading.Thread(target=write)
    writer.start()
    code, envelope = answer("info", str(path))
    writer.join()
    assert code == 0
    assert envelope["result"]["parameters"] == 17226
    assert envelope["result"]["nonfinite"] == 0


def test_a_checkpoint_that_never_settles_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(save({"x": torch.ones(3)}))
    sizes = iter(range(1, 1000))

    def read() -> bytes:
        path.write_bytes(b"x" * next(sizes))
        return path.read_bytes()

    with pytest.raises(CheckpointError, match="still being written"):
        read_settled(path, read, patience=0.6)


def test_a_checkpoint_that_changes_after_it_was_opened_is_never_half_read(
    tmp_path: Path, samples: Path
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes((samples / "digits_mlp.safetensors").read_bytes())
    context = curvcli.load(MLP, checkpoint=str(path))
    assert context.target.checkpoint is not None
    path.write_bytes((samples / "digits_mlp.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="changed while it was read"):
        _ = context.target.model
