"""Every command answers on the device what it answers on the CPU, to rounding."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.device.targets import NAMES, write_targets
from tests.oracles.program import invoke

# Small budgets; what converges at all has done so on the CPU's digits.
COMMANDS = {
    "backprop": ("--samples", "2"),
    "compare": ("--subspace", "1", "--points", "3"),
    "density": ("--steps", "5", "--probes", "2", "--outliers", "1"),
    "gradients": (),
    "hessian": ("--top", "2", "--bottom", "1", "--max-matvecs", "12"),
    "jacobian": (),
    "landscape": ("--points", "5", "--refine", "0"),
    "saddle": ("--max-matvecs", "12"),
    "sharpness": ("--draws", "2", "--probes", "2", "--steps", "2", "--max-matvecs", "6"),
    "step": ("--max-matvecs", "6", "--pairs", "2"),
    "taylor": ("--max-matvecs", "8"),
    "trace": ("--max-matvecs", "16", "--tol", "0.9"),
    "track": ("--max-matvecs", "12"),
}
_TWO_CHECKPOINTS = ("compare", "track")
_NO_JACOBIAN = ("exported", "bytes_gpt")
"""Their inputs are tokens: the whole Jacobian does not exist."""

# In float64, in which all figures are compared: sums in another order, amplified by Lanczos steps.
_RELATIVE = 1e-6
# Figures that are rounding errors themselves, or times.
_ROUNDING = {
    "seconds", "peak_memory", "residual", "rounding", "hvp_check", "asymmetry", "error", "free_memory", "noise_floor",
    "device", "floor", "difference",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("targets")
    write_targets(made)
    return made


def answer_of(command: str, name: str, folder: Path, device: str, dtype: str) -> dict[str, Any]:
    targets = [str(folder / f"{name}.toml")]
    if command in _TWO_CHECKPOINTS:
        suffix = "pt2" if name == "exported" else "safetensors"
        targets += [str(folder / f"{name}.{suffix}")] * 2
    few = ("--batch-size", "2", "--max-batches", "2")
    flags = ("--device", device, "--dtype", dtype, "--format", "json")
    done = invoke(command, *targets, *COMMANDS[command], *few, *flags)
    assert done.exit_code in (0, 3), done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _is_rounding(name: str) -> bool:
    return any(word in name for word in _ROUNDING)


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where two answers differ by more than rounding, or by more than the errors of what is a difference itself."""
    if path.endswith("third_order") and ours and theirs:
        within = 2 * (ours["standard_error"] + theirs["standard_error"])
        near = abs(ours["value"] - theirs["value"]) <= within
        return [] if near else [f"{path}: {ours} and {theirs}"]
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if _is_rounding(str(ours.get("path"))):  # a figure that `compare` names
            return []
        keys = [k for k in {**ours, **theirs} if not _is_rounding(k)]
        return [d for k in keys for d in differences(ours.get(k), theirs.get(k), f"{path}.{k}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}[{i}]")]
    if isinstance(ours, float) and isinstance(theirs, float | int):
        near = math.isclose(ours, theirs, rel_tol=_RELATIVE, abs_tol=1e-12)
        return [] if near else [f"{path}: {ours!r} and {theirs!r}"]
    return [] if ours == theirs else [f"{path}: {ours!r} and {theirs!r}"]


def cases(names: Sequence[str]) -> list[Any]:
    """Every command on every sample; those that take long are for the full run."""
    return [
        pytest.param(command, name, marks=[pytest.mark.full] if _slow(command, name) else [])
        for command in COMMANDS
        for name in names
    ]


def _slow(command: str, name: str) -> bool:
    many_products = command in ("density", "compare", "taylor", "track", "trace")
    if name == "bytes_gpt":
        return command != "hessian"
    if "lstm" in name:
        return many_products or command == "step"
    return name in ("digits_cnn", "exported") and command in ("compare", "density", "taylor")


@pytest.mark.parametrize(("command", "name"), cases(NAMES))
def test_answers_are_those_of_the_cpu(
    command: str, name: str, folder: Path, device: torch.device
) -> None:
    if command == "jacobian" and name in _NO_JACOBIAN:
        pytest.skip("tokens have no Jacobian")
    ours = answer_of(command, name, folder, str(device), "float64")
    cpu = answer_of(command, name, folder, "cpu", "float64")
    found = differences(ours["result"], cpu["result"])
    assert not found, "\n".join(found[:10])


def test_doctor_finds_the_device_healthy(device: torch.device) -> None:
    done = invoke("doctor", "--device", str(device), "--format", "json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["result"]["healthy"]
