"""What one forward pass says of data, outputs and loss, before anything is said of gradients or curvature.

Shapes: ``N`` terms of the loss (samples, or tokens), ``C`` classes or outputs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from curvcli.linalg.vectors import double
from curvcli.machine.containers import tensors_in
from curvcli.objective.batch import Batch
from curvcli.objective.objective import Objective, decay
from curvcli.operators.signals.running_statistics import (
    RunningStatistics,
    compared,
    has_statistics,
    watched_norms,
)

_CLASSES = ("cross_entropy", "token_cross_entropy", "nll")
# Channels of an image, at most; more are features.
_CHANNELS = 16
# Of more classes no table of what is taken for what is kept.
_NAMED = 1000
# At a time, where memory is limited.
_SAMPLES = 64


@dataclass(frozen=True)
class Channel:
    """An input, or one channel of an image."""

    name: str
    mean: float
    rms: float
    nonzero: float
    """Share of the entries."""


@dataclass
class Sanity:
    """Figures of one pass; None where the loss or the data has no such thing."""

    chance: float | None = None
    """Loss of the best constant predictor on these targets."""
    uniform: float | None = None
    """ln C."""
    accuracy: float | None = None
    loss: float = 0.0
    """Of the data alone, without weight decay."""
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
    largest: float | None = None
    """|output|."""
    rectified: bool = False
    """No output is negative, and a hundredth of them or more are exactly zero."""
    renaming: list[int] = field(default_factory=list)
    """For each class that is answered the commonest label, -1 where it is never answered; empty unless one to one."""
    renamed_accuracy: float | None = None
    """Accuracy if the classes had these names."""
    inputs: list[Channel] = field(default_factory=list)
    running: list[RunningStatistics] = field(default_factory=list)
    gathered: bool = True
    """False: there are BatchNorm layers, and none that evaluates by its running statistics has seen a batch."""


def sanity(objective: Objective) -> Sanity:
    """One forward pass over all batches."""
    found, terms = Sanity(loss=_of_data(objective)), objective.terms
    data = [b.data for b in objective.batches]
    arranged = [d for d in data if isinstance(d, tuple) and len(d) == 3]
    if arranged:
        found.inputs = _channels(arranged)
    split = getattr(terms, "outputs", None)
    seen = _Outputs(str(getattr(terms, "name", "")))
    with torch.no_grad(), watched_norms(objective) as norms, objective.evaluation():
        if split is None or not hasattr(terms, "targets"):
            terms(objective.model, data[0])
        else:
            for piece in _pieces(objective):
                seen.add(split(objective.model, piece.data), terms.targets(piece.data))
            seen.judge(found)
            if getattr(terms, "arguments", None):
                found.chance = found.uniform = None  # weights, smoothing: another loss
    found.running = [compared(name, module, x) for name, module, x in norms]
    found.gathered = bool(norms) or not has_statistics(objective.model)
    return found


def _of_data(objective: Objective) -> float:
    return objective.loss - decay(objective.weight_decay, objective.parameters, objective.ranks)


def _pieces(objective: Objective) -> Iterator[Batch]:
    """The data, a few samples at a time where memory is limited."""
    limited = objective.memory is not None and objective.splittable
    for batch in objective.batches:
        yield from batch.pieces(_SAMPLES if limited else batch.size)


class _Moments:
    """Σd and Σd² of the distances d from one of the rows, so that little is lost where all rows are nearly alike."""

    def __init__(self, pivot_C: Tensor) -> None:
        self._pivot_C = pivot_C
        self._sum_C, self._square_C = torch.zeros_like(pivot_C), torch.zeros_like(pivot_C)

    def add(self, x_NC: Tensor) -> None:
        """More rows."""
        d_NC = x_NC - self._pivot_C
        self._sum_C += d_NC.sum(0)
        self._square_C += d_NC.square().sum(0)

    def mean(self, n: int) -> Tensor:
        """Of all n rows."""
        return self._pivot_C + self._sum_C / n

    def variance(self, n: int) -> Tensor:
        """Around that mean."""
        return (self._square_C / n - (self._sum_C / n).square()).clamp(min=0)


class _Outputs:
    """Sums over outputs and targets, so that the outputs of one piece only are held at a time."""

    def __init__(self, name: str) -> None:
        self._name, self._classes = name, name in _CLASSES
        self._usable = True
        self._count = self._right = self._labels = 0
        # Σo² by output, and moments of outputs and of numbers as targets; the number of labels by class.
        self._squares: Tensor | None = None
        self._moments: list[_Moments] = []
        self._counts: Tensor | None = None
        self._zeros, self._largest = 0, 0.0
        self._table: Tensor | None = None
        """Answers by labels."""
        self._not_negative = self._at_most_one = self._simplex = self._log_simplex = True

    def add(self, outputs: Any, targets: Any) -> None:
        """Outputs and targets of a piece; what does not fit the others makes all of no use."""
        fits = all(isinstance(t, Tensor) and t.numel() for t in (outputs, targets))
        rows = _rows(outputs, targets, self._classes) if fits else None
        if rows is None or (self._squares is not None and len(self._squares) != rows[0].shape[1]):
            self._usable = False
            return
        out_NC = double(rows[0])
        target_N = rows[1].to(out_NC.device)
        squares_C = out_NC.square().sum(0)
        self._squares = squares_C if self._squares is None else self._squares + squares_C
        numbers = [out_NC]
        self._count += len(out_NC)
        self._largest = max(self._largest, float(out_NC.abs().max()))
        self._zeros += int((out_NC == 0).sum())
        self._not_negative &= bool((out_NC >= 0).all())
        self._at_most_one &= bool((out_NC <= 1).all())
        if target_N.is_floating_point():
            target_NC = double(target_N)
            numbers.append(target_NC)
            self._right += int(((out_NC > 0) == (target_NC > 0.5)).sum())
        else:
            kept = target_N >= 0
            self._add_classes(out_NC[kept], target_N[kept].long())
        if not self._moments:
            self._moments = [_Moments(x[0]) for x in numbers]
        for moments, x in zip(self._moments, numbers, strict=True):
            moments.add(x)

    def _add_classes(self, out_NC: Tensor, labels_N: Tensor) -> None:
        counts_C = torch.bincount(labels_N, minlength=out_NC.shape[1])
        self._counts = counts_C if self._counts is None else self._counts + counts_C
        self._labels += len(labels_N)
        answer_N, classes = out_NC.argmax(1), out_NC.shape[1]
        self._right += int((answer_N == labels_N).sum())
        if classes <= _NAMED:
            cells = torch.bincount(classes * answer_N + labels_N, minlength=classes**2)
            table_CC = cells.view(classes, classes)
            self._table = table_CC if self._table is None else self._table + table_CC
        self._simplex &= _ones(out_NC.sum(1))
        self._log_simplex &= _ones(out_NC.exp().sum(1))

    def judge(self, found: Sanity) -> None:
        """Put what they say into ``found``."""
        if not self._usable or self._squares is None:
            return
        n, rms = self._count, float(self._squares.mean().div(self._count).sqrt())
        if not math.isfinite(rms):
            return
        if n > 1:
            deviation = float(self._moments[0].variance(n).mean().sqrt())
            found.output_spread = deviation / rms if rms else 0.0
        found.unit_interval = self._not_negative and self._at_most_one
        found.largest = self._largest
        entries = n * len(self._squares)
        found.rectified = (
            self._not_negative and self._zeros >= entries / 100 and self._zeros < entries
        )
        if self._classes and self._counts is not None and self._labels:
            self._judge_classes(found, self._counts)
        elif self._name == "mse" and len(self._moments) > 1:
            found.chance = float(self._moments[1].variance(n).mean())
        elif self._name == "bce_with_logits" and len(self._moments) > 1:
            share_C = self._moments[1].mean(n)
            entropy_C = torch.xlogy(share_C, share_C) + torch.xlogy(1 - share_C, 1 - share_C)
            found.chance = -float(entropy_C.mean())
            found.uniform = math.log(2)
            found.accuracy = self._right / (n * len(share_C))

    def _judge_classes(self, found: Sanity, counts_C: Tensor) -> None:
        share_C = counts_C.double().cpu() / self._labels
        found.class_counts = counts_C.tolist()
        found.chance = -float(torch.xlogy(share_C, share_C).sum())
        found.uniform = math.log(len(counts_C))
        found.majority = float(share_C.max())
        found.accuracy = self._right / self._labels
        found.simplex = len(counts_C) > 1 and self._not_negative and self._simplex
        found.log_simplex = self._log_simplex
        if self._table is not None:
            found.renaming, found.renamed_accuracy = _renamed(self._table.cpu())


def _renamed(table_CC: Tensor) -> tuple[list[int], float | None]:
    """(the commonest label of each answer, accuracy with these names), where no two answers have the same label.

    >>> _renamed(torch.tensor([[0, 9], [8, 1]]))
    ([1, 0], 0.944444)
    """
    counts_C, label_C = table_CC.max(1)
    names: list[int] = label_C[counts_C > 0].tolist()
    if len(set(names)) < len(names):
        return [], None
    renaming = torch.where(counts_C > 0, label_C, -1).tolist()
    return renaming, float(counts_C.sum()) / int(table_CC.sum())


def _ones(sums_N: Tensor) -> bool:
    return bool(((sums_N - 1).abs() < 1e-3).all())


def right_answers(name: str, outputs: Any, targets: Any) -> tuple[int, int] | None:
    """(right answers, answers) by the loss of that name; None where it has no such thing."""
    if not all(isinstance(t, Tensor) and t.numel() for t in (outputs, targets)):
        return None
    rows = _rows(outputs, targets, name in _CLASSES)
    if rows is None:
        return None
    out_NC, target_N = rows[0], rows[1].to(rows[0].device)
    if name in _CLASSES and not target_N.is_floating_point():
        kept = target_N >= 0
        return int((out_NC[kept].argmax(1) == target_N[kept]).sum()), int(kept.sum())
    if name == "bce_with_logits":
        return int(((out_NC > 0) == (target_N > 0.5)).sum()), out_NC.numel()
    return None


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
            share = float((flat != 0).double().mean())
            rms = float(flat.square().mean().sqrt())
            found.append(Channel(name, float(flat.mean()), rms, share))
    return found
