"""Small tensors reduced together: one kernel for many layers, where each would cost more to start than to run.

Shapes: ``K`` tensors of one shape, ``B`` samples, ``T`` positions of a sequence, ``E`` entries of a tensor.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from curvcli.operators.signals.activations import ActivationCounts
from curvcli.operators.signals.reductions import Reduction, counted, peaks, row_square_sums

# Tensors with more entries than this are reduced at once: starting a kernel costs little beside running it.
_SMALL = 1 << 16
# Entries that wait at the same time: a megabyte, or this share of all that passed by.
_WAITING, _SHARE = 1 << 18, 0.05
# Tensors of one shape that wait.
_TOGETHER = 64


class _Key(NamedTuple):
    shape: torch.Size
    kind: torch.dtype
    samples: int
    sequence: bool
    zeros: bool
    activation: str


class _Waiting(NamedTuple):
    values: Tensor
    reduction: Reduction
    counts: ActivationCounts | None


class Reducer:
    """Adds up tensors into `Reduction`s; what is small waits for others of its shape, as a copy.

    Args:
        count_nonfinite: count NaN and Inf entries.
    """

    def __init__(self, count_nonfinite: bool = False) -> None:
        self._count_nonfinite = count_nonfinite
        self._waiting: dict[_Key, list[_Waiting]] = {}
        self._entries = 0
        self._passed = 0

    def add(
        self,
        reduction: Reduction,
        tensor: Tensor,
        samples: int,
        sequence: bool,
        counts: ActivationCounts | None = None,
    ) -> None:
        """Reduce ``tensor``, whose first axis runs over ``samples`` samples where it has that length.

        Args:
            reduction: what it is added to.
            tensor: the values; they may change afterwards.
            samples: samples in this piece of the data.
            sequence: whether the second of three axes is the position in a sequence.
            counts: also count where this activation function is flat; the values are its output.
        """
        entries = tensor.numel()
        if entries == 0:
            return
        activation = "" if counts is None else counts.activation.name
        key = _Key(tensor.shape, tensor.dtype, samples, sequence, reduction.count_zeros, activation)
        self._passed += entries
        values = tensor.detach()
        if entries > _SMALL:
            self._reduce(key, [_Waiting(values, reduction, counts)])
            return
        same = self._waiting.setdefault(key, [])
        same.append(_Waiting(values.clone(), reduction, counts))
        self._entries += entries
        if len(same) == _TOGETHER:
            self._entries -= entries * len(same)
            del self._waiting[key]
            self._reduce(key, same)
        elif self._entries > max(_WAITING, _SHARE * self._passed):
            self.flush()

    def flush(self) -> None:
        """Reduce what waits."""
        waiting, self._waiting, self._entries = self._waiting, {}, 0
        for key, items in waiting.items():
            self._reduce(key, items)

    def _reduce(self, key: _Key, items: list[_Waiting]) -> None:
        k = len(items)
        entries = items[0].values.numel()
        if k == 1:
            flat_KE = items[0].values.reshape(1, entries)
        else:
            flat_KE = torch.stack([item.values for item in items]).view(k, entries)
        shape, samples = key.shape, key.samples
        per_sample = len(shape) > 0 and shape[0] == samples
        by_position = key.sequence and per_sample and len(shape) == 3
        peak_K = peaks(flat_KE).tolist()
        known = [p for p in peak_K if p != 0]
        smallest, largest = (min(known), max(known)) if known else (1.0, 1.0)
        groups = shape[0] * shape[1] if by_position else samples if per_sample else 1
        squares = row_square_sums(flat_KE.reshape(k * groups, entries // groups), smallest, largest)
        total_K = squares.view(k, groups).sum(1).tolist()
        by_sample: list[Tensor] | list[None] = [None] * k
        along: list[Tensor] | list[None] = [None] * k
        if by_position:
            squares_KBT = squares.view(k, shape[0], shape[1])
            along = list(squares_KBT.sum(1).unbind())
            squares = squares_KBT.sum(2)
        if per_sample:
            by_sample = list(squares.view(k, samples).mul_(samples / entries).unbind())
        zeros_K = counted(torch.eq, flat_KE, 0).tolist() if key.zeros else [0.0] * k
        bad_K = [0.0] * k
        if self._count_nonfinite:
            bad_K = (~torch.isfinite(flat_KE)).sum(1).tolist()
        for i, item in enumerate(items):
            item.reduction.add(
                entries, total_K[i], peak_K[i], zeros_K[i], bad_K[i], by_sample[i], along[i]
            )
        if items[0].counts is not None:
            found = items[0].counts.slopes(flat_KE)
            for item, saturated, flat in zip(items, *found, strict=True):
                assert item.counts is not None
                item.counts.add(entries, saturated, flat)
