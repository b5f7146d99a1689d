"""`compare` says which of two networks is better on the data, by paired losses."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.oracles.program import ROOT, answer, invoke

TARGET, WEIGHTS = (str(ROOT / "sample_models" / f"digits_mlp.{s}") for s in ("toml", "safetensors"))
QUICK = ("--analysis", "gradients", "--subspace", "0", "--points", "3")


def changed(folder: Path, size: float) -> str:
    moved = {k: v + size * torch.randn(v.shape) for k, v in load_file(WEIGHTS).items()}
    save_file(moved, folder / "other.safetensors")
    return str(folder / "other.safetensors")


def test_identical_checkpoints_are_called_identical() -> None:
    """The same file twice: one sentence, and nothing is better."""
    shown = invoke("compare", TARGET, WEIGHTS, WEIGHTS, *QUICK).stdout
    assert "are identical" in shown


def test_rounding_to_bfloat16_makes_neither_better(tmp_path: Path) -> None:
    """The same weights in another precision differ by less than the sampling of the data, or by little."""
    cast = {k: v.bfloat16().float() for k, v in load_file(WEIGHTS).items()}
    save_file(cast, tmp_path / "cast.safetensors")
    _, found = answer("compare", TARGET, WEIGHTS, str(tmp_path / "cast.safetensors"), *QUICK)
    pair = found["result"]["paired"]
    assert not found["result"]["identical"]
    assert abs(pair["difference"]) < 0.01 * found["result"]["line"]["points"][0]["loss"]


def test_worse_weights_are_worse_by_the_difference_of_the_losses(tmp_path: Path) -> None:
    """The difference is that of the losses at both ends of the line, and its error that of paired samples."""
    _, found = answer("compare", TARGET, WEIGHTS, changed(tmp_path, 0.05), *QUICK)
    pair, points = found["result"]["paired"], found["result"]["line"]["points"]
    assert pair["better"] == "a"
    assert abs(pair["difference"] - (points[-1]["loss"] - points[0]["loss"])) < 1e-4
    assert 0 < pair["standard_error"] < pair["difference"] / 3
