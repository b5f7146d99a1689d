"""Jacobians of many samples in pieces that fit in memory."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from curvcli.errors import CurvError, MemoryLimitError
from curvcli.linalg.svd.bidiagonal import steps_that_fit
from curvcli.machine.containers import move, tensors_in
from curvcli.machine.device import with_double
from curvcli.machine.memory import HELD, Need, human, need_from, retried, room
from curvcli.machine.meter import MemoryMeter
from curvcli.objective.batch import Batch
from curvcli.objective.network import copied
from curvcli.operators.jacobian.jacobian import SMALL_PIECE, Jacobian, Structure
from curvcli.operators.jacobian.spectra import Settings, Spectra, spectra
from curvcli.operators.jacobian.taps import Passage

# Moves of the input by rounding that the Jacobian's own rounding is estimated from.
_MOVES = 2
# Share of ‖J‖_F by which it changes when the input moves by rounding, from which on a kink is looked for.
_JUMP = 1e-2
# Krylov steps that room is made for when samples are divided into pieces.
_STEPS = 40


class Measured(NamedTuple):
    """The Jacobians of consecutive samples."""

    first: int
    """Number of the first sample over all batches."""
    size: int
    """How many samples."""
    spectra: Spectra
    products: int
    jumps_S: Tensor
    """‖ΔJ‖_F across a kink that the sample sits on; NaN where none was seen."""


def matrix_bytes(op: Jacobian, settings: Settings) -> float:
    """What the norms and singular values of one of the matrices take beside the graph."""
    itemsize = torch.finfo(op.dtype).bits // 8
    if settings.chosen(op) == "dense":
        # The matrix, its copy in float64 and what the SVD makes of it.
        return op.rows * op.columns * (itemsize + 2 * 8)
    steps = min(_STEPS, settings.max_steps, op.rows, op.columns)
    return 1.5 * itemsize * (op.rows + op.columns) * steps


@dataclass
class Chunks:
    """All samples, piece by piece.

    Args:
        passage: network, source and target.
        batches: the data.
        structure: see `jacobian.explore`.
        settings: how norms and singular values are computed.
        memory: bytes the process may use in all; None: what is free now.
        numbers: of the samples; None: 0, 1, 2, …
        notes: told when memory runs out.
    """

    passage: Passage
    batches: Sequence[Batch]
    structure: Structure
    settings: Settings
    memory: int | None = None
    notes: list[str] = field(default_factory=list)
    progress: Callable[[int], None] = lambda _: None

    def __post_init__(self) -> None:
        self.samples = sum(batch.size for batch in self.batches)
        self.micro_batch, self.steps = self._plan()

    def __iter__(self) -> Iterator[Measured]:
        """Piece by piece; smaller ones after running out of memory."""
        first = 0
        for batch in self.batches:
            done = 0
            while done < batch.size:
                found = retried(
                    partial(self._attempt, batch, first, done), partial(self._give_way, batch)
                )
                yield found
                done += found.size
                self.progress(first + done)
                if self.settings.stop():
                    return
            first += batch.size

    def _attempt(self, batch: Batch, first: int, done: int) -> Measured:
        """The next piece of a batch of which ``done`` samples are finished."""
        piece = batch if self._whole(batch) else _part(batch, done, self.micro_batch)
        return self._measure(piece, first + done)

    def _measure(self, piece: Batch, first: int) -> Measured:
        op = Jacobian.of(self.passage, piece, self.structure)
        seeds = [self.settings.seed * 1_000_003 + first + i for i in range(op.count)]
        settings = replace(self.settings, max_steps=min(self.settings.max_steps, self.steps))
        found = spectra(op, settings, seeds)
        moved_S = self._moved(self.passage, op, piece, seeds)
        suspected_S = moved_S > _JUMP * found.frobenius_S.cpu().double()
        kinks_S = suspected_S
        if op.dtype != torch.float64:
            kinks_S = self._kinks(piece, suspected_S, found.frobenius_S.cpu().double(), seeds)
        jumps_S = torch.where(kinks_S, moved_S, math.nan)
        # A singular value moves by no more than ‖ΔJ‖_F (Weyl). Across a kink it is another matrix that moves.
        moved_S = torch.where(kinks_S, 0.0, moved_S)
        found = replace(found, residuals_SK=found.residuals_SK + moved_S[:, None])
        return Measured(first, piece.size, found.rechecked_for(settings.tol), op.products, jumps_S)

    def _kinks(
        self, piece: Batch, suspected_S: Tensor, norms_S: Tensor, seeds: Sequence[int]
    ) -> Tensor:
        """Which samples sit on a kink: there J jumps even when the input moves by the rounding of float64.

        What cannot be tried in float64 is taken for rounding, which is the larger error.
        """
        kinks_S = torch.zeros_like(suspected_S)
        chosen = suspected_S.nonzero()[:, 0].tolist()
        if not chosen or self._whole(piece):
            return kinks_S
        needed = 2 * 8 * sum(p.numel() for p in self.passage.model.parameters())
        try:
            device = next(tensors_in(piece.data)).device
            if room(device, self.memory) < needed:
                return kinks_S
            device = with_double(device)
            model = copied(self.passage.model).to(device).double()
            twin = replace(self.passage, model=model)
            # Numbers of float64 take twice the memory.
            group = max(1, piece.size // 2)
            for i in range(0, len(chosen), group):
                some = chosen[i : i + group]
                data = move(piece.take(some).data, device, torch.float64)
                samples = Batch(data, len(some))
                op = Jacobian.of(twin, samples, self.structure)
                jumped_S = self._moved(twin, op, samples, [seeds[k] for k in some])
                kinks_S[some] = jumped_S > _JUMP * norms_S[some]
        except (CurvError, RuntimeError, TypeError, AttributeError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            self.notes.append(f"kinks are not told from rounding: no run in float64 ({reason})")
        return kinks_S

    def _moved(self, passage: Passage, op: Jacobian, piece: Batch, seeds: Sequence[int]) -> Tensor:
        """Estimate of ‖ΔJ‖_F when the input moves by rounding: what the forward pass leaves uncertain.

        E‖ΔJᵀz‖² = ‖ΔJ‖_F² with Rademacher z; the larger of a few moves of every entry by ± eps.
        """
        generators = [torch.Generator().manual_seed(seed + 15485863) for seed in seeds]
        largest_S = torch.zeros(op.count, dtype=torch.float64)
        eps = torch.finfo(op.dtype).eps
        for _ in range(_MOVES):
            signs = [
                torch.randint(0, 2, (op.rows + op.columns,), generator=g) * 2 - 1
                for g in generators
            ]
            signs_SL = torch.stack(signs).to(op.device, op.dtype)
            values = [
                x.detach() * (1 + eps * part)
                for x, part in zip(op.sources, op.split(signs_SL[:, op.rows :]), strict=True)
            ]
            taps = passage.run(piece, values)
            other = Jacobian(taps.sources, taps.target, piece.size, self.structure, passage.kernels)
            z_SM = signs_SL[:, : op.rows]
            change_S = torch.linalg.vector_norm(other.vjp(z_SM) - op.vjp(z_SM), dim=1)
            largest_S = torch.maximum(largest_S, change_S.cpu().double())
            op.products += other.products
        return largest_S

    def _whole(self, batch: Batch) -> bool:
        return self.structure.coupled or not batch.splittable

    def _plan(self) -> tuple[int, int]:
        """Samples at a time, and the Krylov steps that there is room for then."""
        batch = max(self.batches, key=lambda b: b.size)
        small = batch if self._whole(batch) else next(iter(batch.pieces(SMALL_PIECE)))
        need, op = self._need(batch, small)
        available = room(op.device, self.memory)
        itemsize = torch.finfo(op.dtype).bits // 8
        share = op.count / op.samples
        matrix = share * matrix_bytes(op, self.settings)
        need = Need(HELD * need.fixed, HELD * need.per_sample)
        both = Need(need.fixed, need.per_sample + matrix)
        least = batch.size if self._whole(batch) else 1
        if both.of(least) > available:
            raise MemoryLimitError(
                f"{human(max(0, available))} are available; the Jacobian of one "
                f"{'sample' if least == 1 else 'batch'} ({op.rows} × {op.columns}) needs {human(both.of(least))}",
                "raise --memory, or choose a smaller pair by --wrt, --of and --output-key",
            )
        micro = max(least, min(batch.size, both.samples_within(available)))
        left = available - need.of(micro)
        steps = steps_that_fit(left / max(1.0, share * micro), op.rows, op.columns, itemsize)
        return micro, max(2, steps)

    def _need(self, batch: Batch, small: Batch) -> tuple[Need, Jacobian]:
        """Bytes of the graph and of products with it."""
        first, op = self._peak(small)
        large = batch if small.size == batch.size else next(iter(batch.pieces(2 * small.size)))
        last = first if large.size == small.size else self._peak(large)[0]
        return need_from((small.size, first), (large.size, last)), op

    def _peak(self, piece: Batch) -> tuple[int, Jacobian]:
        with MemoryMeter() as meter:
            op = Jacobian.of(self.passage, piece, self.structure)
            op.vjp(torch.zeros(op.count, op.rows, dtype=op.dtype, device=op.device))
            if self.settings.chosen(op) != "dense" or op.columns < op.rows:
                op.jvp(torch.zeros(op.count, op.columns, dtype=op.dtype, device=op.device))
            # A second graph lives beside the first one there.
            self._moved(self.passage, op, piece, range(op.count))
        return meter.peak, op

    def _give_way(self, batch: Batch) -> None:
        """After running out of memory: smaller pieces, if there are any."""
        if self._whole(batch) or self.micro_batch == 1:
            samples = batch.size if self._whole(batch) else 1
            raise MemoryLimitError(
                f"out of memory with {samples} samples at a time",
                "choose a smaller pair by --wrt, --of and --output-key, or use a larger machine",
            )
        self.micro_batch = max(1, self.micro_batch // 2)
        self.notes.append(f"ran out of memory: going on with {self.micro_batch} samples at a time")


def _part(batch: Batch, start: int, size: int) -> Batch:
    """Samples ``start`` to ``start + size`` of a batch."""
    return batch.take(range(start, min(start + size, batch.size)))
