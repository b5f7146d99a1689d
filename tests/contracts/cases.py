"""The commands whose answers are recorded, on the sample models; small budgets, everything that can be asked for."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from curvcli.cli.main import make_app
from tests.oracles.program import ROOT

ANSWERS = Path(__file__).parent / "answers"
MODELS = (
    "bytes_gpt", "dead_relu", "digits_cnn", "digits_lstm", "digits_mlp", "exploding",
    "linear_regression", "long_lstm", "saddle", "vanishing_sigmoid", "wrong_backward",
)  # fmt: skip
_FEW = ("--batch-size", "32", "--max-batches", "1")
_SMALL = ("--top", "3", "--bottom", "1", "--max-matvecs", "60")


def _every_model() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for model in MODELS:
        target = f"sample_models/{model}.toml"
        small = _FEW if model in ("bytes_gpt", "long_lstm", "digits_lstm") else ()
        long_series = ("--samples", "2") if model == "long_lstm" else ("--samples", "8")
        found |= {
            f"hessian-{model}": ("hessian", target, *small, *_SMALL),
            f"hessian-{model}-float64": (
                "hessian", target, *_FEW, *_SMALL, "--dtype", "float64", "--tol", "1e-6"
            ),
            f"saddle-{model}": ("saddle", target, *small, "--max-matvecs", "60"),
            f"gradients-{model}": ("gradients", target, *small),
            f"backprop-{model}": ("backprop", target, *long_series),
        }  # fmt: skip
    return found


def _more() -> dict[str, tuple[str, ...]]:
    mlp, cnn, gpt = (f"sample_models/{n}.toml" for n in ("digits_mlp", "digits_cnn", "bytes_gpt"))
    lstm, linear = "sample_models/digits_lstm.toml", "sample_models/linear_regression.toml"
    copies = ("sample_models/digits_mlp.toml", "near.safetensors", "far.safetensors")
    return {
        "hessian-ggn": ("hessian", mlp, *_SMALL, "--matrix", "ggn"),
        "hessian-gram": ("hessian", mlp, *_FEW[:1], "16", *_FEW[2:], *_SMALL, "--matrix", "ggn"),
        "hessian-fisher": ("hessian", mlp, *_SMALL, "--matrix", "fisher"),
        "hessian-empirical": ("hessian", mlp, *_SMALL, "--matrix", "empirical-fisher"),
        "hessian-magnitude": ("hessian", cnn, *_FEW, *_SMALL, "--order", "magnitude"),
        "hessian-layers": ("hessian", mlp, *_FEW, *_SMALL, "--per-layer", "--layer-density", "2"),
        "hessian-blocks": ("hessian", gpt, *_FEW, *_SMALL, "--per-block"),
        "hessian-params": ("hessian", cnn, *_FEW, *_SMALL, "--params", "*weight"),
        "hessian-decay": ("hessian", mlp, *_FEW, *_SMALL, "--weight-decay", "0.1"),
        "hessian-batches": ("hessian", mlp, "--batch-size", "500", "--max-batches", "2", *_SMALL),
        "trace-mlp": ("trace", mlp, *_FEW, "--max-matvecs", "300", "--tol", "0.1"),
        "trace-split": (
            "trace", mlp, *_FEW, "--max-matvecs", "300", "--split", "--tol", "0.3"
        ),
        "trace-linear": ("trace", linear, "--dtype", "float64"),
        "trace-gram": ("trace", mlp, "--batch-size", "16", "--max-batches", "1", "--matrix", "ggn"),
        "density-mlp": ("density", mlp, *_FEW, "--steps", "20", "--max-probes", "5"),
        "density-linear": ("density", linear, "--dtype", "float64"),
        "saddle-index": ("saddle", "sample_models/saddle.toml", "--index"),
        "landscape-mlp": ("landscape", mlp, *_FEW, "--to", "far.safetensors"),
        "landscape-cnn": (
            "landscape", cnn, *_FEW, "--along", "random", "--points", "9", "--norm-statistics", "recompute"
        ),
        "landscape-eigen": (
            "landscape", linear, "--along", "eigen", "--dims", "2", "--points", "9", "--dtype", "float64"
        ),
        "sharpness-mlp": (
            "sharpness", mlp, *_FEW, "--measure", "worst", "--measure", "average", "--measure", "pac-bayes",
            "--measure", "relative-flatness", "--measure", "fisher-rao", "--measure", "m-sharpness", "--shard", "8",
            "--draws", "4", "--probes", "4", "--steps", "5",
        ),
        "sharpness-linear": ("sharpness", linear, "--dtype", "float64", "--draws", "6", "--probes", "6"),
        "taylor-mlp": ("taylor", mlp, *_FEW, "--max-matvecs", "60"),
        "taylor-steps": ("taylor", linear, "--direction", "newton", "--direction", "lbfgs"),
        "taylor-to": ("taylor", mlp, *_FEW, "--to", "far.safetensors", "--max-matvecs", "60"),
        "step-linear": ("step", linear, "--dtype", "float64"),
        "step-mlp": ("step", mlp, *_FEW, "--max-matvecs", "40", "--pairs", "3"),
        "lr-linear": ("lr", linear, "--dtype", "float64", "--optimizer", "momentum", "--steps", "10"),
        "gradients-rate": ("gradients", mlp, "--learning-rate", "0.1", "--worst", "2"),
        "gradients-reinit": ("gradients", mlp, *_FEW, "--reinit", "kaiming,xavier", "--seeds", "2"),
        "jacobian-mlp": ("jacobian", mlp, *_FEW),
        "jacobian-layers": ("jacobian", cnn, "--batch-size", "4", "--max-batches", "1", "--per-layer"),
        "jacobian-lstm": ("jacobian", lstm, "--batch-size", "4", "--max-batches", "1"),
        "jacobian-gpt": (
            "jacobian", gpt, "--batch-size", "2", "--max-batches", "1", "--method", "golub-kahan",
            "--top", "2",
        ),
        "jacobian-inner": ("jacobian", mlp, *_FEW, "--of", "fc1", "--full", "--sample", "3"),
        "jacobian-kernel": ("jacobian", mlp, *_FEW, "--wrt", "parameters"),
        "compare-mlp": ("compare", *copies, *_FEW, "--subspace", "2"),
        "track-mlp": ("track", *copies, *_FEW, "--lr", "0.1"),
        "report-linear": (
            "report", linear, "--dtype", "float64", "--budget", "1h", "--analysis", "hessian", "--analysis",
            "gradients",
        ),
        "check-mlp": ("check", mlp, "--no-cache"),
        "check-rules": (
            "check", mlp, "--no-cache", "--rule", "hessian.top[0].value < 1e9",
            "--rule", "gradients.depth_gain > 1e-9", "--rule", "info.nonfinite == 0",
        ),
        "info-mlp": ("info", "sample_models/digits_mlp.safetensors"),
        "init-mlp": ("init", "sample_models/digits_mlp.safetensors", "--to", "made.toml"),
    }  # fmt: skip


CASES = {**_every_model(), **_more()}


@contextlib.contextmanager
def workplace(folder: Path) -> Iterator[None]:
    """In ``folder``, with the sample models and two checkpoints near and far from a trained one."""
    shutil.copytree(ROOT / "sample_models", folder / "sample_models", dirs_exist_ok=True)
    weights = load_file(ROOT / "sample_models" / "digits_mlp.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, size in (("near", 1e-3), ("far", 3e-2)):
        moved = {
            k: v + size * torch.randn(v.shape, generator=generator) for k, v in weights.items()
        }
        save_file(moved, folder / f"{name}.safetensors")
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def answer_of(arguments: tuple[str, ...]) -> dict[str, Any]:
    """Exit code and JSON answer of a command, without what differs from run to run."""
    done = CliRunner().invoke(make_app(), [*arguments, "--format", "json"])
    answer = json.loads(done.stdout)
    for volatile in ("version", "notes"):
        answer.pop(volatile, None)
    for volatile in ("seconds", "peak_memory"):
        answer["cost"].pop(volatile, None)
    return {"exit_code": done.exit_code, **_without_times(answer)}


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in ("seconds", "cached")}
    return [_without_times(v) for v in value] if isinstance(value, list) else value
