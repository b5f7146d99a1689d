"""What is kept of a tensor that passes by: sums, not values."""

import math

import torch
from torch import Tensor

# Entries converted to double precision at once: temporaries stay small beside the tensors themselves.
_CHUNK = 1 << 20
# Rows that float32 sums exactly enough, and the sizes whose squares stay far from its ends.
_SHORT, _USUAL = 1 << 16, (1e-10, 1e12)


def wide(tensor: Tensor) -> torch.dtype:
    """The type sums are taken in: squares of small float32 numbers underflow in float32."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def row_square_sums(rows_RK: Tensor, peak: Tensor | None = None) -> Tensor:
    """Σ_k x_rk² in double precision, shape (R,).

    Args:
        rows_RK: the values.
        peak: their largest magnitude, if it is known: where it shows that float32 neither overflows nor loses
            anything, the CPU is spared the conversion.
    """
    kind = wide(rows_RK)
    k = rows_RK.shape[1]
    if _fits_single(rows_RK, peak):
        norms_R: Tensor = torch.linalg.vector_norm(rows_RK, dim=1)
        return norms_R.to(kind).square_()
    if rows_RK.numel() <= _CHUNK:
        norms_R = torch.linalg.vector_norm(rows_RK.to(kind), dim=1)
        return norms_R.square_()
    if k > _CHUNK:
        return torch.stack([row_square_sums(part) for part in rows_RK.split(_CHUNK, 1)]).sum(0)
    return torch.cat([row_square_sums(part) for part in rows_RK.split(max(1, _CHUNK // k))])


def _fits_single(rows_RK: Tensor, peak: Tensor | None) -> bool:
    """Whether sums of squares in float32 are right to 1e-5: short rows of numbers of a usual size."""
    if peak is None or rows_RK.dtype != torch.float32 or rows_RK.device.type != "cpu":
        return False
    return rows_RK.shape[1] <= _SHORT and _USUAL[0] < float(peak) < _USUAL[1]


def square_sum(tensor: Tensor) -> Tensor:
    """Σ x² in double precision, a scalar tensor."""
    return row_square_sums(tensor.detach().reshape(1, -1)).sum()


class Reduction:
    """Sums over everything that one layer's activation, or its gradient, was.

    Args:
        count_nonfinite: also count NaN and Inf entries (costs a pass over the tensor).
        count_zeros: also count the entries that are exactly zero.
    """

    def __init__(self, count_nonfinite: bool = False, count_zeros: bool = True) -> None:
        self.entries = 0
        self._count_zeros = count_zeros
        self._count_nonfinite = count_nonfinite
        self._square_sum: Tensor | None = None
        self._zeros: Tensor | None = None
        self._peak: Tensor | None = None
        self._nonfinite: Tensor | None = None
        self._by_sample: list[Tensor] | None = []
        self._by_position: Tensor | None = None
        self._position_entries = 0
        self._positions_differ = False

    def add(self, tensor: Tensor, samples: int, sequence: bool) -> None:
        """Reduce ``tensor``, whose first axis runs over ``samples`` samples where it has that length.

        Args:
            tensor: the values.
            samples: samples in this piece of the data.
            sequence: whether the second of three axes is the position in a sequence.
        """
        x = tensor.detach()
        if x.numel() == 0:
            return
        per_sample = x.dim() > 0 and x.shape[0] == samples
        by_position = sequence and per_sample and x.dim() == 3
        lowest, highest = torch.aminmax(x)
        peak = torch.maximum(highest, -lowest)
        self._peak = peak if self._peak is None else torch.maximum(self._peak, peak)
        rows = x.shape[0] * x.shape[1] if by_position else samples if per_sample else 1
        squares_R = row_square_sums(x.reshape(rows, -1), peak)
        total = squares_R.sum()
        self.entries += x.numel()
        self._square_sum = total if self._square_sum is None else self._square_sum + total
        if self._count_zeros:
            zeros = x.numel() - torch.count_nonzero(x)
            self._zeros = zeros if self._zeros is None else self._zeros + zeros
        if self._count_nonfinite:
            bad = (~torch.isfinite(x)).sum()
            self._nonfinite = bad if self._nonfinite is None else self._nonfinite + bad
        if by_position:
            self._add_positions(squares_R.view(x.shape[:2]).sum(0))
            self._position_entries += x.numel() // x.shape[1]
            squares_R = squares_R.view(x.shape[:2]).sum(1)
        if not per_sample:
            self._by_sample = None
        elif self._by_sample is not None:
            self._by_sample.append(squares_R * (samples / x.numel()))

    def _add_positions(self, squares_T: Tensor) -> None:
        if self._by_position is None:
            self._by_position = squares_T
        elif self._by_position.shape == squares_T.shape:
            self._by_position = self._by_position + squares_T
        else:
            self._positions_differ = True

    @property
    def reached(self) -> bool:
        """Whether anything was added."""
        return self._square_sum is not None

    @property
    def rms(self) -> float | None:
        """Root mean square over all entries; NaN or Inf if there is one among them."""
        if self._square_sum is None:
            return None
        return math.sqrt(float(self._square_sum) / self.entries)

    @property
    def finite(self) -> bool:
        """Whether every entry is finite."""
        return self._square_sum is None or math.isfinite(float(self._square_sum))

    @property
    def zero_fraction(self) -> float | None:
        """Share of entries that are exactly zero, if they were counted."""
        return None if self._zeros is None else float(self._zeros) / self.entries

    @property
    def peak(self) -> float | None:
        """Largest magnitude."""
        return None if self._peak is None else float(self._peak)

    @property
    def nonfinite(self) -> int:
        """NaN and Inf entries, if they were counted."""
        return 0 if self._nonfinite is None else int(self._nonfinite)

    def rms_by_sample(self) -> Tensor | None:
        """Root mean square of each sample; None where the first axis is not the sample."""
        if not self._by_sample:
            return None
        return torch.cat(self._by_sample).sqrt().cpu()

    def rms_by_position(self) -> list[float] | None:
        """Root mean square at each position of the sequence; None where lengths differ or it is none."""
        if self._by_position is None or self._positions_differ:
            return None
        return (self._by_position / self._position_entries).sqrt().cpu().tolist()
