"""Checkpoints whose contents are known: of a module, of a moved regression, of a descent."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.conftest import SAMPLES


def moved_regression(folder: Path) -> Path:
    """The linear regression with its weight moved by 0.1 in its first entry."""
    tensors = load_file(SAMPLES / "linear_regression.safetensors")
    name = next(n for n in tensors if n.endswith("weight"))
    tensors[name][0, 0] += 0.1
    save_file(tensors, folder / "other.safetensors")
    return folder / "other.safetensors"


def descent(folder: Path) -> Path:
    """Ten steps of gradient descent of the linear regression, every second one saved in a folder of its own."""
    folder = folder / "series"
    folder.mkdir()
    with np.load(SAMPLES / "breast_cancer.npz") as archive:
        data = dict(archive)
    x, y = torch.from_numpy(data["x"]).float(), torch.from_numpy(data["y"]).float().reshape(-1, 1)
    tensors = load_file(SAMPLES / "linear_regression.safetensors")
    names = sorted(tensors)  # bias, weight
    for step in range(11):
        if step % 2 == 0:
            save_file(tensors, folder / f"step_{step}.safetensors")
        rest = x @ tensors[names[1]].T + tensors[names[0]] - y
        tensors[names[1]] = tensors[names[1]] - 0.01 * 2 / len(x) * (rest.T @ x)
        tensors[names[0]] = tensors[names[0]] - 0.01 * 2 * rest.mean(0)
    return folder


def stored(model: nn.Module, folder: Path) -> Path:
    """The weights of the module in a file."""
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "m.safetensors")
    return folder / "m.safetensors"
