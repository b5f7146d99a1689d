"""What is kept of a tensor that passes by: sums, not values.

Shapes: ``K`` tensors of one shape, ``B`` samples, ``T`` positions of a sequence.
"""

import math
from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from curvcli.machine.device import block, supports
from curvcli.machine.private import norms

# Entries converted to double precision at once: temporaries stay small beside the tensors themselves.
_CHUNK = 1 << 20
# Entries that stay in a core's cache, and how many are compared at once.
_CACHED, _BLOCK = 1 << 19, 1 << 15
# Rows that float32 sums exactly enough, and the sizes whose squares stay far from its ends.
_SHORT, _USUAL = 1 << 16, (1e-10, 1e12)
# Norms whose float32 value has lost nothing.
_SAFE = (1e-15, 1e15)


def wide(tensor: Tensor) -> torch.dtype:
    """The type sums are taken in: squares of small float32 numbers underflow in float32."""
    return torch.float64 if supports(tensor.device, torch.float64) else torch.float32


def row_square_sums(rows_RK: Tensor, peak: float = math.inf) -> Tensor:
    """Σ_k x_rk² in double precision, shape (R,).

    Args:
        rows_RK: the values.
        peak: the largest magnitude of what the rows are, if it is known: where it shows that float32 neither
            overflows nor loses anything, the CPU is spared the conversion.
    """
    kind = wide(rows_RK)
    k = rows_RK.shape[1]
    if (
        rows_RK.dtype == torch.float32
        and rows_RK.device.type == "cpu"
        and k <= _SHORT
        and _USUAL[0] < peak < _USUAL[1]
    ):
        norms_R: Tensor = torch.linalg.vector_norm(rows_RK, dim=1)
        return norms_R.to(kind).square_()
    chunk = block(rows_RK.device, _CHUNK)
    if rows_RK.numel() <= chunk:
        norms_R = torch.linalg.vector_norm(rows_RK.to(kind), dim=1)
        return norms_R.square_()
    if k > chunk:
        return torch.stack([row_square_sums(part) for part in rows_RK.split(chunk, 1)]).sum(0)
    return torch.cat([row_square_sums(part) for part in rows_RK.split(max(1, chunk // k))])


def square_sum(tensor: Tensor) -> Tensor:
    """Σ x² in double precision, a scalar tensor."""
    return row_square_sums(tensor.detach().reshape(1, -1)).sum()


def square_sums(tensors: Sequence[Tensor]) -> list[float]:
    """Σ x² of each tensor, in float32 where that is right to 1e-6."""
    single = [
        i for i, t in enumerate(tensors) if t.dtype == torch.float32 and 0 < t.numel() <= _SHORT
    ]
    found = [math.nan] * len(tensors)
    if single:
        lengths = norms([tensors[i].detach() for i in single]).tolist()
        for i, norm in zip(single, lengths, strict=True):
            # What underflows beside a norm of this size does not count, and nothing overflows.
            if _SAFE[0] < norm < _SAFE[1]:
                found[i] = norm**2
    return [
        float(square_sum(t)) if math.isnan(value) else value
        for t, value in zip(tensors, found, strict=True)
    ]


def peaks(rows_RK: Tensor) -> Tensor:
    """Largest magnitude in each row, shape (R,); NaN where there is one."""
    if len(rows_RK) == 1 and rows_RK.numel() > _CACHED:
        lowest, highest = torch.aminmax(rows_RK)
        return torch.maximum(highest, -lowest).reshape(1)
    # Two quick kernels: the one that finds both is slow along an axis, and is bound by memory only beyond the cache.
    return torch.maximum(rows_RK.amax(1), -rows_RK.amin(1))


def counted(compare: Any, rows_RK: Tensor, than: float) -> Tensor:
    """How many entries of each row compare as asked, exact, shape (R,).

    Truth values are written as float32 numbers: their sums take a fifth of the time that those of bool take.
    """
    r, k = rows_RK.shape
    size = min(k, max(1, block(rows_RK.device, _BLOCK) // r))
    out = torch.empty((r, size), dtype=torch.float32, device=rows_RK.device)
    total_R = torch.zeros(r, dtype=wide(rows_RK), device=rows_RK.device)
    for part in rows_RK.split(size, 1):
        # A block has few enough entries that float32 holds their number exactly.
        total_R += compare(part, than, out=out[:, : part.shape[1]]).sum(1)
    return total_R


class Reduction:
    """Sums over everything that one layer's activation, or its gradient, was.

    Args:
        count_zeros: whether the entries that are exactly zero are counted.
    """

    def __init__(self, count_zeros: bool = True) -> None:
        self.count_zeros = count_zeros
        self.entries = 0
        self.nonfinite = 0
        """NaN and Inf entries, if they are counted."""
        self._square_sum: float | None = None
        self._zeros = 0.0
        self._peak = 0.0
        self._by_sample: list[Tensor] | None = []
        self._by_position: Tensor | None = None
        self._position_entries = 0
        self._positions_differ = False

    def see(
        self, tensor: Tensor, samples: int, sequence: bool, count_nonfinite: bool = False
    ) -> None:
        """Add a tensor, whose first axis runs over ``samples`` samples where it has that length.

        Args:
            tensor: the values.
            samples: samples in this piece of the data.
            sequence: whether the second of three axes is the position in a sequence.
            count_nonfinite: count NaN and Inf entries.
        """
        values, entries = tensor.detach(), tensor.numel()
        if entries == 0:
            return
        flat_1E = values.reshape(1, entries)
        peak = float(peaks(flat_1E))
        per_sample = values.dim() > 0 and len(values) == samples
        by_position = sequence and per_sample and values.dim() == 3
        groups = len(values) * values.shape[1] if by_position else samples if per_sample else 1
        squares = row_square_sums(flat_1E.view(groups, entries // groups), peak or 1.0)
        self.entries += entries
        self._square_sum = (self._square_sum or 0.0) + float(squares.sum())
        # NaN stays.
        self._peak = peak if math.isnan(peak) or peak > self._peak else self._peak
        if self.count_zeros:
            self._zeros += float(counted(torch.eq, flat_1E, 0))
        if count_nonfinite:
            self.nonfinite += int((~torch.isfinite(flat_1E)).sum())
        if by_position:
            squares_BT = squares.view(len(values), values.shape[1])
            self._add_positions(squares_BT.sum(0))
            self._position_entries += entries // values.shape[1]
            squares = squares_BT.sum(1)
        if not per_sample:
            self._by_sample = None
        elif self._by_sample is not None:
            self._by_sample.append(squares.mul_(samples / entries))

    def _add_positions(self, squares_T: Tensor) -> None:
        if self._by_position is None:
            self._by_position = squares_T
        elif self._by_position.shape == squares_T.shape:
            self._by_position = self._by_position + squares_T
        else:
            self._positions_differ = True

    def on_host(self) -> "Reduction":
        """A copy with all its tensors on the CPU."""
        found = copy(self)
        if self._by_sample is not None:
            found._by_sample = [values.cpu() for values in self._by_sample]
        if self._by_position is not None:
            found._by_position = self._by_position.cpu()
        return found

    def add(self, other: "Reduction") -> None:
        """As if all that ``other`` has seen, on the same device, had been seen here as well."""
        if not other.reached:
            return
        self.entries += other.entries
        self.nonfinite += other.nonfinite
        self._square_sum = (self._square_sum or 0.0) + (other._square_sum or 0.0)
        self._zeros += other._zeros
        peak = other._peak
        self._peak = peak if math.isnan(peak) or peak > self._peak else self._peak
        if self._by_sample is None or other._by_sample is None:
            self._by_sample = None
        else:
            self._by_sample = [*self._by_sample, *other._by_sample]
        if other._by_position is not None:
            self._add_positions(other._by_position)
            self._position_entries += other._position_entries
        self._positions_differ |= other._positions_differ

    @property
    def reached(self) -> bool:
        """Whether anything was added."""
        return self._square_sum is not None

    @property
    def rms(self) -> float | None:
        """Root mean square over all entries; NaN or Inf if there is one among them."""
        return None if self._square_sum is None else math.sqrt(self._square_sum / self.entries)

    @property
    def finite(self) -> bool:
        """Whether every entry is finite."""
        return self._square_sum is None or math.isfinite(self._square_sum)

    @property
    def zero_fraction(self) -> float | None:
        """Share of entries that are exactly zero, if they were counted."""
        return self._zeros / self.entries if self.count_zeros and self.reached else None

    @property
    def peak(self) -> float | None:
        """Largest magnitude."""
        return self._peak if self.reached else None

    def mean_squares_by_sample(self) -> Tensor | None:
        """Mean square of each sample; None where the first axis is not the sample."""
        if not self._by_sample:
            return None
        return self._by_sample[0] if len(self._by_sample) == 1 else torch.cat(self._by_sample)

    def rms_by_position(self) -> list[float] | None:
        """Root mean square at each position of the sequence; None where lengths differ or it is none."""
        if self._by_position is None or self._positions_differ:
            return None
        return (self._by_position / self._position_entries).sqrt().cpu().tolist()
