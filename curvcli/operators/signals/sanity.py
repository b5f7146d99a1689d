"""What one forward pass says of data, outputs and loss, before anything is said of gradients or curvature.

Shapes: ``N`` terms of the loss (samples, or tokens), ``C`` classes or outputs.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.linalg.vectors import double
from curvcli.machine.containers import tensors_in
from curvcli.objective.objective import Objective

_CLASSES = ("cross_entropy", "token_cross_entropy", "nll")
# Channels of an image, at most; more are features.
_CHANNELS = 16


@dataclass(frozen=True)
class Channel:
    """An input, or one channel of an image."""

    name: str
    mean: float
    rms: float


@dataclass(frozen=True)
class RunningStatistics:
    """A BatchNorm's running statistics against those of the data."""

    name: str
    variance_ratio: float
    """Median over channels: variance of the data over the running one."""
    shift: float
    """RMS over channels: distance of the means in running standard deviations."""


@dataclass
class Sanity:
    """Figures of one pass; None where the loss or the data has no such thing."""

    chance: float | None = None
    """Loss of the best constant predictor on these targets."""
    uniform: float | None = None
    """ln C."""
    accuracy: float | None = None
    majority: float | None = None
    """Share of the commonest class."""
    class_counts: list[int] = field(default_factory=list)
    output_spread: float | None = None
    """Standard deviation of the outputs over the samples, over their RMS."""
    simplex: bool = False
    """Outputs are not negative and sum to one over the classes."""
    unit_interval: bool = False
    """All outputs lie in [0, 1]."""
    log_simplex: bool = False
    """exp(outputs) sums to one over the classes."""
    inputs: list[Channel] = field(default_factory=list)
    running: list[RunningStatistics] = field(default_factory=list)


def sanity(objective: Objective) -> Sanity:
    """One forward pass over all batches."""
    found, terms = Sanity(), objective.terms
    data = [b.data for b in objective.batches]
    arranged = [d for d in data if isinstance(d, tuple) and len(d) == 3]
    if arranged:
        found.inputs = _channels(arranged)
    with torch.no_grad(), _watched_norms(objective) as norms, objective.evaluation():
        split = getattr(terms, "outputs", None)
        if split is None or not hasattr(terms, "targets"):
            terms(objective.model, data[0])
        else:
            outputs = [split(objective.model, d) for d in data]
            targets = [terms.targets(d) for d in data]
            _judge_outputs(found, str(getattr(terms, "name", "")), outputs, targets)
            if getattr(terms, "arguments", None):
                found.chance = found.uniform = None  # weights, smoothing: another loss
    found.running = [_compared(name, module, x) for name, module, x in norms]
    return found


def _judge_outputs(found: Sanity, name: str, outputs: list[Tensor], targets: list[Any]) -> None:
    if not all(isinstance(t, Tensor) and t.numel() for t in (*outputs, *targets)):
        return
    pairs = zip(outputs, targets, strict=True)
    rows = [_rows(o, t, name in _CLASSES) for o, t in pairs]
    if any(r is None for r in rows) or len({r[0].shape[1] for r in rows if r}) != 1:
        return
    out_NC = torch.cat([double(r[0]) for r in rows if r])
    if not bool(torch.isfinite(out_NC).all()):
        return
    target_N = torch.cat([r[1] for r in rows if r]).to(out_NC.device)
    found.output_spread = _spread(out_NC)
    found.unit_interval = bool(((out_NC >= 0) & (out_NC <= 1)).all())
    if name in _CLASSES and not target_N.is_floating_point():
        kept = target_N >= 0
        _judge_classes(found, out_NC[kept], target_N[kept].long())
    elif name == "mse":
        target_NC = double(target_N)
        found.chance = float((target_NC - target_NC.mean(0)).square().mean())
    elif name == "bce_with_logits":
        share_C = double(target_N).mean(0)
        found.chance = float(
            -(torch.xlogy(share_C, share_C) + torch.xlogy(1 - share_C, 1 - share_C)).mean()
        )
        found.uniform = math.log(2)
        found.accuracy = float(((out_NC > 0) == (target_N > 0.5)).double().mean())


def _judge_classes(found: Sanity, out_NC: Tensor, labels_N: Tensor) -> None:
    classes = out_NC.shape[1]
    counts_C = torch.bincount(labels_N, minlength=classes)
    share_C = counts_C.double() / max(1, len(labels_N))
    found.class_counts = counts_C.tolist()
    found.chance = float(-torch.xlogy(share_C, share_C).sum())
    found.uniform = math.log(classes)
    found.majority = float(share_C.max())
    found.accuracy = float((out_NC.argmax(1) == labels_N).double().mean())
    sums_N = out_NC.sum(1)
    found.simplex = classes > 1 and bool((out_NC >= 0).all()) and _ones(sums_N)
    found.log_simplex = _ones(out_NC.exp().sum(1))


def _ones(sums_N: Tensor) -> bool:
    return bool(((sums_N - 1).abs() < 1e-3).all())


def _rows(outputs: Tensor, targets: Tensor, classes: bool) -> tuple[Tensor, Tensor] | None:
    """Outputs as (N, C), and targets as (N,) labels or (N, C) numbers; None where they do not fit."""
    if classes and not targets.is_floating_point():
        if outputs.dim() >= 2 and targets.shape == outputs.shape[:-1]:
            return outputs.flatten(0, -2), targets.flatten()
        if outputs.dim() >= 2 and targets.shape == (outputs.shape[0], *outputs.shape[2:]):
            return outputs.movedim(1, -1).flatten(0, -2), targets.flatten()
        return None
    if outputs.numel() != targets.numel():
        return None
    flat = outputs.reshape(outputs.shape[0] if outputs.dim() else 1, -1)
    return flat, targets.reshape(flat.shape).to(flat.dtype)


def _spread(out_NC: Tensor) -> float | None:
    """0: the same output for every sample."""
    if len(out_NC) < 2:
        return None
    rms = float(out_NC.square().mean().sqrt())
    return float(out_NC.var(0, correction=0).mean().sqrt()) / rms if rms else 0.0


def _channels(arranged: list[Any]) -> list[Channel]:
    """Mean and RMS of each floating-point input, of images by channel."""
    found = []
    first = tensors_in((arranged[0][0], arranged[0][1]))
    for index, tensor in enumerate(first):
        if not tensor.is_floating_point() or tensor.dim() < 2:
            continue
        same = [list(tensors_in((d[0], d[1])))[index] for d in arranged]
        image = tensor.dim() == 4 and tensor.shape[1] <= _CHANNELS
        for c in range(tensor.shape[1]) if image else (None,):
            flat = torch.cat([double(t if c is None else t[:, c]).flatten() for t in same])
            name = f"input {index}" if c is None else f"input {index}, channel {c}"
            found.append(Channel(name, float(flat.mean()), float(flat.square().mean().sqrt())))
    return found


@contextmanager
def _watched_norms(
    objective: Objective,
) -> Iterator[list[tuple[str, nn.modules.batchnorm._BatchNorm, list[Tensor]]]]:
    """The inputs of every BatchNorm that normalises by running statistics it has gathered."""
    found: list[tuple[str, nn.modules.batchnorm._BatchNorm, list[Tensor]]] = []
    handles = []
    for name, module in objective.model.named_modules():
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if not norm or module.running_var is None or module.running_mean is None:
            continue
        if module.training or not int(module.num_batches_tracked or 0):
            continue
        sums: list[Tensor] = []
        found.append((name, module, sums))
        handles.append(module.register_forward_pre_hook(_summing(sums)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _summing(sums: list[Tensor]) -> Any:
    """A hook that adds up count, Σx and Σx² by channel."""

    def hook(_module: nn.Module, inputs: Any) -> None:
        x = double(inputs[0].detach()).movedim(1, 0).flatten(1)
        parts = [torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.square().sum(1)]
        for i, part in enumerate(parts):
            if len(sums) <= i:
                sums.append(part)
            else:
                sums[i] = sums[i] + part

    return hook


def _compared(
    name: str, module: nn.modules.batchnorm._BatchNorm, sums: list[Tensor]
) -> RunningStatistics:
    if not sums or module.running_mean is None or module.running_var is None:
        return RunningStatistics(name, 1.0, 0.0)
    mean_C = sums[1] / sums[0]
    variance_C = (sums[2] / sums[0] - mean_C.square()).clamp(min=0) + module.eps
    running_C = double(module.running_var) + module.eps
    shift_C = (mean_C - double(module.running_mean)) / running_C.sqrt()
    return RunningStatistics(
        name, float((variance_C / running_C).median()), float(shift_C.square().mean().sqrt())
    )
