"""From a model, batches and a loss to an `Objective`: what must hold of them, and what is learnt on the way."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from curvcli.errors import DataError, LossError, NonFiniteError, some
from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.machine.containers import joined
from curvcli.machine.memory import room
from curvcli.machine.meter import MemoryMeter
from curvcli.machine.precision import set_precision
from curvcli.objective.batch import Batch
from curvcli.objective.faults import fault_in_data, random_modules, why_not_finite
from curvcli.objective.layout import Held, Layout
from curvcli.objective.lookups import Lookups, uses
from curvcli.objective.network import (
    check_weights,
    choose_parameters,
    evaluation,
    set_mode,
    start_afresh,
    uses_batch_statistics,
)
from curvcli.objective.objective import Objective, decay
from curvcli.objective.terms import LossTerms, restarted

# Samples of a piece whose bytes are counted.
_MEASURED = 2
# Untouched entries below this share of all are not worth being left out.
WORTHWHILE = 0.05


def make_objective(
    model: nn.Module,
    batches: Sequence[Batch],
    terms: LossTerms,
    *,
    select: Sequence[str] = (),
    weight_decay: float = 0.0,
    train_mode: bool = False,
    accept_nonfinite: bool = False,
    plain: bool = False,
    tf32: bool = False,
    memory: int | None = None,
    offload: str | None = None,
    ranks: Ranks = ALONE,
    lean: Callable[[], AbstractContextManager[None]] = nullcontext,
    divided: Sequence[Held] = (),
    notes: list[str] | None = None,
) -> Objective:
    """L(θ), after two evaluations of the loss that must agree.

    Args:
        model: on its device, in its dtype. The mode (train or eval) is set here.
        batches: what the mean runs over.
        terms: the loss.
        select: globs over parameter names; the others are held fixed. Empty: all that are trainable.
        weight_decay: wd of the quadratic term, over the selected parameters.
        train_mode: batch statistics instead of running ones. Dropout stays off, so that L is a function.
        accept_nonfinite: NaN and Inf in weights, data and loss are no error, for those who look for them.
        plain: products use torch's own operations only.
        tf32: allow TF32 products on CUDA. Set here, since a module that was imported may have set otherwise.
        memory: bytes that the process may use in all; None: as many as there are.
        offload: where Krylov bases are kept, see `linalg.storage`; None: on the device.
        ranks: processes that share the data out.
        lean, divided: see `Objective`.
        notes: receives what was switched, skipped or assumed.

    Raises:
        ModelError: no parameter is left.
        DataError: there are no batches, or no loss terms in them.
        LossError: the loss differs between two calls, or does not depend on the parameters.
        NonFiniteError: weights, data or loss contain NaN or Inf.
    """
    if not batches:
        raise DataError(
            "there are no batches: the data is empty", "pass data with at least one sample"
        )
    set_precision(tf32)
    notes = [] if notes is None else notes
    notes.extend(set_mode(model, train_mode))
    names, parameters, left_out = choose_parameters(model, select)
    notes.extend(left_out)
    if not accept_nonfinite:
        check_weights(model)
    lookups = Lookups(parameters)
    first, second, batches, terms, splittable = _twice(
        model, batches, terms, lookups, memory, notes
    )
    _check_sums(first, second, model, batches, terms, accept_nonfinite)
    fault = None if accept_nonfinite else fault_in_data(batches, harmless=True)
    if fault is not None:
        notes.append(f"in the data, {fault}: the loss is finite nevertheless")
    if not splittable and len(batches) < ranks.size:
        raise DataError(
            f"{ranks.size} processes share {len(batches)} batches that may not be cut: some would have nothing to do",
            f"start {len(batches)} of them, or pass data in more batches (--batch-size)",
        )
    with lean():
        rows = _looked_up(
            model, batches, terms, parameters, lookups, splittable, bool(weight_decay)
        )
    layout = Layout(parameters, rows)
    if rows:
        notes.append(
            f"{layout.untouched:,} entries of {some(names[i] for i in rows)} are looked up by no sample: "
            "gradient and curvature are exactly zero there, and they are left out of all vectors"
        )
    return Objective(
        model=model,
        batches=batches,
        terms=terms,
        names=names,
        layout=layout,
        loss=first.total / first.weight + decay(weight_decay, parameters, ranks),
        weight=first.weight,
        weight_decay=weight_decay,
        plain=plain,
        tf32=tf32,
        memory=memory,
        offload=offload,
        evaluated_bytes=first.bytes,
        ranks=ranks,
        lean=lean,
        divided=divided,
        notes=notes,
    )


def _twice(
    model: nn.Module,
    batches: Sequence[Batch],
    terms: LossTerms,
    lookups: Lookups,
    memory: int | None,
    notes: list[str],
) -> tuple["_Evaluation", "_Evaluation", Sequence[Batch], LossTerms, bool]:
    """Two evaluations of the loss, the batches and terms as they are to be used, and whether batches are sums."""
    splittable = all(b.splittable for b in batches) and not uses_batch_statistics(model)
    together = _evaluated_together(model, batches, terms, memory) if splittable else None
    piece = next(batches[0].pieces(together or batches[0].size))
    notes.extend(start_afresh(model, partial(terms, model, piece.data)))
    terms = restarted(terms, model)
    first = _evaluated(model, batches, terms, together, lookups)
    # In halves: what is the same then is deterministic, and a sum over samples.
    halves = max(1, max(b.size for b in batches) // 2) if splittable else None
    if halves is not None and together is not None:
        halves = min(halves, together)
    second = _evaluated(model, batches, terms, halves, None)
    if splittable and _differ(first, second, model):
        second = _evaluated(model, batches, terms, together, None)
        if not _differ(first, second, model):
            batches, splittable = _whole(batches, notes), False
            first = second = _evaluated(model, batches, terms, None, lookups)
    return first, second, batches, terms, splittable


class _Evaluation(NamedTuple):
    """The loss of all batches."""

    total: float
    weight: float
    bytes: int
    """That the largest batch made on its way; 0 where they were not counted."""


def _evaluated(
    model: nn.Module,
    batches: Sequence[Batch],
    terms: LossTerms,
    together: int | None,
    lookups: Lookups | None,
) -> _Evaluation:
    """Sum and number of the loss terms, from ``together`` samples at a time."""
    total, weight, largest = 0.0, 0.0, 0
    with torch.no_grad(), evaluation(model):
        for batch in batches:
            meter = MemoryMeter()
            with ExitStack() as watching:
                if lookups is not None:
                    watching.enter_context(lookups)
                    watching.enter_context(meter)
                for piece in batch.pieces(together or batch.size):
                    part, count = terms(model, piece.data)
                    total += float(part)
                    weight += count
            largest = max(largest, meter.total)
    return _Evaluation(total, weight, largest)


def _check_sums(
    first: _Evaluation,
    second: _Evaluation,
    model: nn.Module,
    batches: Sequence[Batch],
    terms: LossTerms,
    accept_nonfinite: bool,
) -> None:
    """The loss has terms, is finite, and the same twice."""
    if first.weight <= 0:
        raise DataError(
            "the batches have no loss terms: every target is ignored",
            "check ignore_index and the labels",
        )
    if not math.isfinite(first.total) and not accept_nonfinite:
        in_double = any(p.dtype == torch.float64 for p in model.parameters())
        finer = "" if in_double else ": try --dtype float64"
        raise NonFiniteError(
            why_not_finite(first.total, model, batches, terms),
            "clean the data" if fault_in_data(batches) else f"look for overflow{finer}",
        )
    if _differ(first, second, model):
        suspects = random_modules(model, batches[0], terms)
        raise LossError(
            f"the loss is random: {first.total / first.weight:.6g} and then {second.total / first.weight:.6g} on the "
            f"same data; random modules: {some(suspects)}",
            "make the model deterministic in eval mode: no sampling, and F.dropout with training=self.training",
        )


def _differ(first: _Evaluation, second: _Evaluation, model: nn.Module) -> bool:
    """Whether two sums differ by more than their order: atomic additions on GPUs change the last bits."""
    eps = torch.finfo(next(model.parameters()).dtype).eps
    return abs(first.total - second.total) > 1e3 * eps * abs(first.total)


def _whole(batches: Sequence[Batch], notes: list[str]) -> list[Batch]:
    """The batches, which may not be cut: the loss of one is not the sum over its pieces.

    Raises:
        LossError: there are several, so that L would depend on how the data was divided.
    """
    if len(batches) == 1:
        notes.append(
            "the loss of the batch is not the sum over its samples: the batch is not cut into pieces"
        )
        return [replace(batches[0], splittable=False)]
    data = joined([batch.data for batch in batches])
    if data is None:
        raise LossError(
            "the loss of a batch is not the sum over its samples (class weights, a mean over what is not masked), and "
            f"the tensors of the {len(batches)} batches do not fit together: the loss depends on how data is divided",
            "pass all samples as one batch (--max-batches 1), or return (sum of the terms, sum of their weights) from "
            "the loss",
        )
    notes.append(
        f"the loss of a batch is not the sum over its samples: the {len(batches)} batches are taken as one"
    )
    return [Batch(data, sum(batch.size for batch in batches), splittable=False)]


def _looked_up(
    model: nn.Module,
    batches: Sequence[Batch],
    terms: LossTerms,
    parameters: Sequence[nn.Parameter],
    lookups: Lookups,
    splittable: bool,
    decays: bool,
) -> dict[int, Tensor]:
    """`_touched_rows` of the loss of one sample.

    Raises:
        LossError: the loss has no gradient.
    """
    with torch.enable_grad(), evaluation(model):
        piece = next(batches[0].pieces(1 if splittable else batches[0].size))
        one = terms(model, piece.data)[0]
    if decays:  # weight decay bends the surface along untouched entries too
        return {}
    if not one.requires_grad:
        raise LossError(
            "the loss does not depend on the parameters: no gradient reaches any of them",
            "look for .detach(), torch.no_grad() or .item() in the model or the loss",
        )
    return _touched_rows(lookups, one, parameters)


def _touched_rows(
    lookups: Lookups, total: Tensor, parameters: Sequence[nn.Parameter]
) -> dict[int, Tensor]:
    """Of parameters with rows that no sample looks up, the others, where it is worth leaving those out."""
    nodes = uses(total, parameters)
    masks = [lookups.untouched(p, nodes[id(p)]) for p in parameters]
    entries = sum(
        int(m.sum()) * p[0].numel() for m, p in zip(masks, parameters, strict=True) if m is not None
    )
    if entries < WORTHWHILE * sum(p.numel() for p in parameters):
        return {}
    return {i: (~mask).nonzero()[:, 0] for i, mask in enumerate(masks) if mask is not None}


def _evaluated_together(
    model: nn.Module, batches: Sequence[Batch], terms: LossTerms, memory: int | None
) -> int | None:
    """Samples whose loss is evaluated at a time within the memory; None: whole batches."""
    if memory is None:
        return None
    largest = max(batches, key=lambda b: b.size)
    piece = next(largest.pieces(_MEASURED))
    with torch.no_grad(), evaluation(model), MemoryMeter() as meter:
        terms(model, piece.data)
    # Half of what is free: the kernels' own buffers are not seen.
    half = room(next(model.parameters()).device, memory) / 2
    return max(1, int(half * piece.size / max(1, meter.peak)))
