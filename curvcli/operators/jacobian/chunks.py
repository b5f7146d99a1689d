"""Jacobians of many samples in pieces that fit in memory."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from curvcli.errors import CurvError, MemoryLimitError
from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.linalg.svd.bidiagonal import steps_that_fit
from curvcli.machine.containers import move, tensors_in
from curvcli.machine.memory import HELD, Need, human, need_from, retried, room
from curvcli.machine.meter import MemoryMeter
from curvcli.objective.batch import Batch
from curvcli.objective.float64 import in_double
from curvcli.objective.network import copied
from curvcli.operators.jacobian.jacobian import SMALL_PIECE, Jacobian, Structure
from curvcli.operators.jacobian.spectra import Settings, Spectra, spectra
from curvcli.operators.jacobian.taps import Passage

# So many rows are compared one by one.
_ROWS = 4
# Random vectors of which the largest difference to float64 counts: one may cancel it.
_DRAWS = 2
# What the allocator keeps of the float64 groups beside the piece, as a factor.
_BESIDE = 1.15
# Share of the room that a copy of the network in float64 may take.
_COPY = 0.25
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
        notes: told when memory runs out.
        ranks: processes that share the samples out; whole batches, where they may not be cut.
    """

    passage: Passage
    batches: Sequence[Batch]
    structure: Structure
    settings: Settings
    memory: int | None = None
    notes: list[str] = field(default_factory=list)
    progress: Callable[[int], None] = lambda _: None
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        # Before the room for samples is measured: copies take some of it.
        self._twin, self._no_twin = self._double()
        self.micro_batch, self.steps = self._plan()

    def measured(self) -> list[Measured]:
        """All samples in order, those of other processes too."""
        found = self.ranks.collected(list(self))
        return sorted(found, key=lambda measured: measured.first)

    def __iter__(self) -> Iterator[Measured]:
        """This process' share, piece by piece; smaller ones after running out of memory."""
        seen = 0
        for first, batch in self._mine():
            done = 0
            while done < batch.size:
                found = retried(
                    partial(self._attempt, batch, first, done), partial(self._give_way, batch)
                )
                yield found
                done += found.size
                seen += found.size
                self.progress(seen * self.ranks.size)
                if self.settings.stop():
                    return

    def _mine(self) -> Iterator[tuple[int, Batch]]:
        """The number of the first sample, and the samples, of this process' share of each batch."""
        first = 0
        for index, batch in enumerate(self.batches):
            own = self.ranks.share(batch.size)
            if not self._whole(batch) and (part := batch.between(own)) is not None:
                yield first + own.start, part
            elif self._whole(batch) and index % self.ranks.size == self.ranks.rank:
                yield first, batch
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
        moved_S = _moved([self.passage], op, piece, seeds)
        moved_S = torch.maximum(moved_S, self._against_double(op, piece, seeds))
        suspected_S = moved_S > _JUMP * found.frobenius_S.cpu().double()
        kinks_S = suspected_S
        if op.dtype != torch.float64:
            kinks_S = self._kinks(piece, suspected_S, found.frobenius_S.cpu().double(), seeds)
        jumps_S = torch.where(kinks_S, moved_S, math.nan)
        # Singular values and ‖J‖_F move by no more than ‖ΔJ‖_F (Weyl). Across a kink it is another matrix that moves.
        moved_S = torch.where(kinks_S, 0.0, moved_S)
        found = replace(
            found,
            residuals_SK=found.residuals_SK + moved_S[:, None],
            frobenius_error_S=found.frobenius_error_S.hypot(moved_S.to(found.frobenius_error_S)),
        )
        return Measured(first, piece.size, found.rechecked_for(settings.tol), op.products, jumps_S)

    def _kinks(
        self, piece: Batch, suspected_S: Tensor, norms_S: Tensor, seeds: Sequence[int]
    ) -> Tensor:
        """Which samples sit on a kink: there J jumps even when the input moves by the rounding of float64.

        What cannot be tried in float64 is taken for rounding, which is the larger error.
        """
        kinks_S = torch.zeros_like(suspected_S)
        chosen = suspected_S.nonzero()[:, 0].tolist()
        twin = self._twin
        if chosen and self._no_twin:
            self.notes.append(
                f"kinks are not told from rounding: no run in float64 ({self._no_twin})"
            )
        if twin is not None and not self._whole(piece):
            for some, op, samples in self._in_double(twin, piece, chosen):
                jumped_S = _moved([twin, twin], op, samples, [seeds[k] for k in some])
                kinks_S[some] = jumped_S > _JUMP * norms_S[some]
        return kinks_S

    def _against_double(self, op: Jacobian, piece: Batch, seeds: Sequence[int]) -> Tensor:
        """‖ΔJ‖_F between the Jacobian and the one in float64, its rounding: of a few rows, else estimated.

        Where there is no run in float64, the last digits of weights, buffers and input move instead.
        """
        twin = None if op.dtype == torch.float64 else self._twin
        if twin is None or self._whole(piece):
            return _moved([self._shaken], op, piece, seeds)
        squares_S = torch.zeros(op.count, dtype=torch.float64)
        exactly = op.rows <= _ROWS
        drawn = (
            _rows(op)
            if exactly
            else [
                _signs(op, [s + 49979687 * i for s in seeds])[:, : op.rows] for i in range(_DRAWS)
            ]
        )
        products = [op.vjp(z_SM) for z_SM in drawn]
        for some, exact, _ in self._in_double(twin, piece, list(range(op.count))):
            for z_SM, product_SN in zip(drawn, products, strict=True):
                there_SN = exact.vjp(z_SM[some].to(exact.device, exact.dtype))
                change_SN = there_SN - product_SN[some].to(exact.device, exact.dtype)
                change_S = change_SN.square().sum(1).cpu()
                squares_S[some] = (
                    squares_S[some] + change_S
                    if exactly
                    else torch.maximum(squares_S[some], change_S)
                )
            op.products += exact.products
        return squares_S.sqrt()

    def _in_double(
        self, twin: Passage, piece: Batch, chosen: Sequence[int]
    ) -> Iterator[tuple[list[int], Jacobian, Batch]]:
        """Some samples' Jacobians in float64, in groups that take less memory than the piece itself."""
        device = next(twin.model.parameters(), torch.zeros(0)).device
        group = max(1, piece.size // 8)
        for i in range(0, len(chosen), group):
            some = list(chosen[i : i + group])
            samples = Batch(move(piece.take(some).data, device, torch.float64), len(some))
            yield some, Jacobian.of(twin, samples, self.structure), samples

    @cached_property
    def _numbers(self) -> int:
        """In the network."""
        values = self.passage.model.state_dict().values()
        return sum(t.numel() for t in values if isinstance(t, Tensor))

    def _double(self) -> tuple[Passage | None, str]:
        """A network of lower precision in float64, where a copy fits and its Jacobian is had; and why it is not."""
        first = next((batch for batch in self.batches if not self._whole(batch)), None)
        if first is None or any(p.dtype == torch.float64 for p in self.passage.model.parameters()):
            return None, ""
        device = next(tensors_in(first.data)).device
        if self._numbers * 8 > _COPY * room(device, self.memory):
            return None, ""
        try:
            model, sample = in_double(self.passage.model, first.take([0]), device)
            twin = replace(self.passage, model=model)
            op = Jacobian.of(twin, sample, self.structure)
            op.vjp(torch.zeros(op.count, op.rows, dtype=op.dtype, device=op.device))
            if op.dtype == torch.float64:
                return twin, ""
            return None, "parts of it compute in another precision"
        except (CurvError, RuntimeError, TypeError, AttributeError, ValueError) as error:
            return None, " ".join(str(error).split())[:120]

    @cached_property
    def _shaken(self) -> Passage:
        """The network with the last digits of its weights and buffers moved, where a copy fits.

        Then intermediate results are rounded otherwise as well, of which the input's digits alone know nothing.
        """
        device = next(tensors_in(self.batches[0].data)).device
        if self._numbers * 8 > _COPY * room(device, self.memory):
            return self.passage
        try:
            model = copied(self.passage.model)
        except (RuntimeError, TypeError, AttributeError, ValueError):
            return self.passage
        if not all(p.is_leaf for p in model.parameters()):  # copies of TorchScript keep a graph
            return self.passage
        generator = torch.Generator().manual_seed(self.settings.seed + 32452843)
        with torch.no_grad():
            for value in {id(t): t for t in (*model.parameters(), *model.buffers())}.values():
                if value.is_floating_point():
                    signs = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
                    value.mul_(1 + torch.finfo(value.dtype).eps * signs)
        return replace(self.passage, model=model)

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
        held = HELD if self._twin is None else _BESIDE * HELD
        need = Need(held * need.fixed, held * need.per_sample)
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
            _moved([self.passage], op, piece, range(op.count))
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


def _rows(op: Jacobian) -> list[Tensor]:
    """Unit vectors of the outputs, each for all matrices."""
    identity_MM = torch.eye(op.rows, dtype=op.dtype, device=op.device)
    return [row_M.expand(op.count, -1) for row_M in identity_MM]


def _signs(op: Jacobian, seeds: Sequence[int]) -> Tensor:
    """Rademacher vectors for outputs and inputs side by side, shape (S, rows + columns)."""
    drawn = [
        torch.randint(
            0, 2, (op.rows + op.columns,), generator=torch.Generator().manual_seed(s + 15485863)
        )
        for s in seeds
    ]
    return torch.stack(drawn).to(op.device, op.dtype) * 2 - 1


def _moved(passages: Sequence[Passage], op: Jacobian, piece: Batch, seeds: Sequence[int]) -> Tensor:
    """Estimate of ‖ΔJ‖_F when the last digits of the input move: what the forward pass leaves uncertain.

    E‖ΔJᵀz‖² = ‖ΔJ‖_F² with Rademacher z; the largest over ``passages``, every entry moved by ± eps in each.
    """
    largest_S = torch.zeros(op.count, dtype=torch.float64)
    eps = torch.finfo(op.dtype).eps
    for round_, passage in enumerate(passages):
        signs_SL = _signs(op, [seed + 86028121 * round_ for seed in seeds])
        z_SM = signs_SL[:, : op.rows]
        values = [
            x.detach() * (1 + eps * part)
            for x, part in zip(op.sources, op.split(signs_SL[:, op.rows :]), strict=True)
        ]
        taps = passage.run(piece, values)
        other = Jacobian(taps.sources, taps.target, piece.size, op.structure, passage.kernels)
        change_S = torch.linalg.vector_norm(other.vjp(z_SM) - op.vjp(z_SM), dim=1)
        largest_S = torch.maximum(largest_S, change_S.cpu().double())
        op.products += other.products
    return largest_S
