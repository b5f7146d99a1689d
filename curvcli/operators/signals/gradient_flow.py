"""One backward pass over the objective in pieces: signals of every layer, weight gradients, their noise.

Shapes: ``P`` parts of the data whose gradients are compared with each other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from curvcli.errors import MemoryLimitError
from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.machine.device import block
from curvcli.machine.memory import out_of_memory, room
from curvcli.objective.batch import Batch
from curvcli.objective.objective import Objective, decay
from curvcli.operators.signals.layers import is_leaf
from curvcli.operators.signals.reductions import peaks, wide
from curvcli.operators.signals.signals import Recorder
from curvcli.operators.signals.together import put_together, worth_sharing

# Parts whose gradients are kept to measure the noise.
PARTS = 4
# Hooks cost some microseconds a layer: very deep networks are cut into fewer parts.
_LAYER_CALLS = 4096
# Columns of the products that are added up in double precision.
_BLOCK = 1 << 16
# Tensors with at most so many entries are multiplied together with others of their size.
_SMALL = 1 << 14
# Share of the free memory (or of --memory) that the parts' gradients may take.
_MEMORY_SHARE = 0.125


@dataclass
class Flow:
    """What one pass found."""

    recorder: Recorder
    loss: float
    gradient: list[Tensor]
    """∇L by parameter, weight decay included."""
    gram_TPP: list[Tensor] | None
    """⟨g_i, g_j⟩ of each parameter tensor, float64 on the CPU; g_i is the mean gradient of part i."""
    part_samples: list[int]
    samples: int
    complete: bool = True

    @property
    def finite(self) -> bool:
        """Whether loss, activations and gradients are."""
        signals = self.recorder.signals.values()
        return math.isfinite(self.loss) and all(
            s.activation.finite and s.gradient.finite for s in signals
        )


def flow(
    objective: Objective,
    *,
    parts: int = PARTS,
    memory: int | None = None,
    count_nonfinite: bool = False,
    clone_views: bool = True,
    details: bool = True,
    stop: Callable[[], object] = lambda: None,
) -> Flow:
    """Forward and backward over every batch once, in at least ``parts`` pieces where they may be cut.

    Args:
        objective: L.
        parts: gradients to compare; fewer where the batches cannot be cut or memory is short.
        memory: bytes the process may use.
        count_nonfinite: count NaN and Inf entries of every activation and gradient.
        clone_views: see `Recorder`.
        details: also record attention and recurrent layers.
        stop: asked between pieces; a true value ends the pass with what is known.

    Raises:
        MemoryLimitError: a piece does not fit.
    """
    ranks = objective.ranks
    pieces = cut(objective, max(parts, ranks.size))
    # Divided weights are gathered for every piece, by all processes at once: each looks at all data.
    if ranks.parted or (ranks.size > 1 and not worth_sharing(pieces, ranks)):
        ranks = ALONE
    parts = min(parts, len(pieces))
    together = -objective.ranks.largest(-_kept_at_once(objective, memory)) if parts > 1 else 1
    groups = _group_sizes(len(pieces), min(parts, together))
    recorder = Recorder(
        objective, count_nonfinite=count_nonfinite, clone_views=clone_views, details=details
    )
    with recorder.watching():
        passed = _pass(objective, recorder, pieces, groups, ranks, stop)
    if ranks.size > 1 and not put_together(recorder, ranks):
        return flow(
            replace(objective, ranks=ALONE), parts=parts, memory=memory, count_nonfinite=count_nonfinite,
            clone_views=clone_views, details=details, stop=stop,
        )  # fmt: skip
    kept, part_samples = passed.kept, passed.part_samples
    grams = None
    if len(kept) > 1:
        own_TPP = torch.stack(_grams(kept, [objective.samples / b for b in part_samples]))
        grams = list(objective.ranks.over_entries(own_TPP))
    gradient = _summed(kept)
    (loss,) = ranks.totals(passed.loss)
    loss += _decay(objective, gradient)
    objective.cost.gradients += 1
    complete = sum(part_samples) == objective.samples
    return Flow(recorder, loss, gradient, grams, part_samples, objective.samples, complete)


class _Passed(NamedTuple):
    """What came of the pieces."""

    kept: list[list[Tensor]]
    """By part, the gradient of every parameter."""
    part_samples: list[int]
    loss: float
    """Of this process' pieces."""


def _pass(
    objective: Objective,
    recorder: Recorder,
    pieces: Sequence[Batch],
    groups: Sequence[int],
    ranks: Ranks,
    stop: Callable[[], object],
) -> _Passed:
    """Forward and backward over this process' pieces; gradients of each group are summed over all processes."""
    kept: list[list[Tensor]] = []
    part_samples: list[int] = []
    own = ranks.share(len(pieces))
    loss, numbers = 0.0, iter(range(len(pieces)))
    for size in groups:
        sums, count = None, 0
        for _ in range(size):
            number = next(numbers)
            count += pieces[number].size
            if not own.start <= number < own.stop:
                continue
            total, gradients = _differentiate(objective, recorder, pieces[number])
            loss += total
            if sums is None:
                sums = gradients
            else:
                for a, g in zip(sums, gradients, strict=True):
                    a.add_(g)
        sums = [torch.zeros_like(p) for p in objective.parameters] if sums is None else sums
        _keep(kept, _over_all(sums, ranks), keep_apart=len(groups) > 1)
        part_samples.append(count)
        if stop():
            break
    return _Passed(kept, part_samples, loss)


def _over_all(tensors: list[Tensor], ranks: Ranks) -> list[Tensor]:
    """Their sums over all processes, by one exchange."""
    if ranks.size == 1:
        return tensors
    flat_N = ranks.sum(torch.cat([t.detach().reshape(-1) for t in tensors]))
    parts = flat_N.split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]


def _summed(kept: list[list[Tensor]]) -> list[Tensor]:
    """The sum over the parts, by parameter; ``kept`` is empty then."""
    gradient = []
    for part in kept:
        part.reverse()
    while kept[0]:
        # Taken out one by one: the parts and their sum never exist as a whole side by side.
        tensors = [part.pop() for part in kept]
        for other in tensors[1:]:
            tensors[0].add_(other)
        gradient.append(tensors[0])
    return gradient


def _decay(objective: Objective, gradient: list[Tensor]) -> float:
    """Weight decay's part of L; that of ∇L is added to ``gradient``."""
    if not objective.weight_decay:
        return 0.0
    for g, p in zip(gradient, objective.parameters, strict=True):
        g.add_(p.detach(), alpha=objective.weight_decay)
    return decay(objective.weight_decay, objective.parameters, objective.ranks)


def cut(objective: Objective, parts: int) -> list[Batch]:
    """The batches, cut so that there are about ``parts`` pieces where that is possible."""
    batches = list(objective.batches)
    if len(batches) >= parts or not objective.splittable:
        return batches
    calls = sum(is_leaf(m) for m in objective.model.modules())
    wanted = max(2, min(parts, _LAYER_CALLS // max(1, calls)))
    size = max(1, math.ceil(objective.samples / wanted))
    return [piece for batch in batches for piece in batch.pieces(size)]


def _differentiate(
    objective: Objective, recorder: Recorder, piece: Batch
) -> tuple[float, list[Tensor]]:
    """Loss and gradient of a piece."""
    recorder.begin(piece.size)
    try:
        with torch.enable_grad():
            with recorder:
                total = objective.sum_of(piece)
            recorder.find_trunk(total)
            if not total.requires_grad:
                recorder.end()
                return float(total), [torch.zeros_like(p) for p in objective.parameters]
            gradients = torch.autograd.grad(
                total, objective.parameters, allow_unused=True, materialize_grads=True
            )
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise MemoryLimitError(
            f"out of memory with {piece.size} samples at a time", "pass a smaller --batch-size"
        ) from None
    recorder.end()
    # What all processes send back to gathered weights was summed, of the same piece.
    seen = objective.ranks.size if objective.ranks.parted else 1
    return float(total.detach()), [g.detach() / seen if seen > 1 else g.detach() for g in gradients]


def _keep(kept: list[list[Tensor]], sums: list[Tensor], keep_apart: bool) -> None:
    if keep_apart or not kept:
        kept.append(sums)
        return
    for a, g in zip(kept[0], sums, strict=True):
        a.add_(g)


def _kept_at_once(objective: Objective, memory: int | None) -> int:
    """How many gradients may be held at once; at least two."""
    size = objective.length * torch.finfo(objective.dtype).bits // 8
    limit = memory if memory is not None else room(objective.device, None)
    return max(2, int(_MEMORY_SHARE * limit / max(1, size)))


def _group_sizes(pieces: int, groups: int) -> list[int]:
    """``pieces`` consecutive pieces in at most ``groups`` groups of nearly the same size."""
    groups = max(1, min(pieces, groups))
    return [pieces // groups + (i < pieces % groups) for i in range(groups)]


def _grams(kept: Sequence[Sequence[Tensor]], scales: list[float]) -> list[Tensor]:
    """Inner products of the parts' mean gradients of each tensor, float64 on the CPU, shape (P, P).

    Args:
        kept: by part, the gradient of every parameter.
        scales: by part, what makes a mean of the sum.
    """
    scale_P = torch.tensor(scales, dtype=torch.float64)
    found: list[Tensor] = [scale_P] * len(kept[0])
    groups: dict[int, list[int]] = {}
    for i, tensor in enumerate(kept[0]):
        # Large tensors one by one: the parts are never copied as a whole.
        groups.setdefault(tensor.numel() if tensor.numel() <= _SMALL else -1 - i, []).append(i)
    for same in groups.values():
        flat = [torch.stack([part[i].reshape(-1) for i in same]) for part in kept]
        gram_GPP = _gram(flat).cpu().double() * (scale_P[:, None] * scale_P)
        for i, gram_PP in zip(same, gram_GPP, strict=True):
            found[i] = gram_PP
    return found


def _gram(flat_GK: list[Tensor]) -> Tensor:
    """Inner products over the last axis of the parts' tensors, in double precision, shape (G, P, P).

    Entries are divided by the largest first: squares of vanishing gradients underflow in float32. Blocks are
    multiplied in the gradients' own type where they are short, and added up in double precision.
    """
    p, (g, k) = len(flat_GK), flat_GK[0].shape
    peak_G = torch.stack([peaks(f) for f in flat_GK]).amax(0).to(wide(flat_GK[0]))
    unit_G = torch.where(peak_G > 0, peak_G, 1.0)
    single = flat_GK[0].dtype if flat_GK[0].dtype == torch.float64 else torch.float32
    scale_G11 = unit_G.to(single)[:, None, None]
    gram_GPP = torch.zeros(g, p, p, dtype=wide(flat_GK[0]), device=flat_GK[0].device)
    length = max(_BLOCK, block(gram_GPP.device, _BLOCK) // (g * p))
    multiplied = single if length == _BLOCK else gram_GPP.dtype
    for first in range(0, k, length):
        part_GPK = torch.stack([f[:, first : first + length] for f in flat_GK], 1).to(multiplied)
        part_GPK.div_(scale_G11)
        gram_GPP += part_GPK @ part_GPK.mT
    return gram_GPP * unit_G.square()[:, None, None]
