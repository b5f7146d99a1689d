"""A short true training run on copies of the weights, which come back to the bit."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from curvcli.objective.objective import Objective
from curvcli.operators.signals.gradient_flow import flow

# Losses that are looked at along a run.
_LOOKS = 10
# A loss so many times that at the start will not come back.
_LOST = 1e4


@dataclass(frozen=True)
class Dead:
    """Units that fire for no sample."""

    fraction: float
    """Of all units that can die."""
    layers: tuple[str, ...]
    """Layers all of whose units are dead."""


@dataclass(frozen=True)
class Course:
    """What a run came by."""

    steps: int
    losses: list[float]
    """L over all batches at equal distances, the first at the start."""
    dead: Dead | None
    """At the end; None where the loss was not finite by then."""

    @property
    def finite(self) -> bool:
        """Whether the loss stayed finite and within reach."""
        return math.isfinite(self.losses[-1]) and abs(self.losses[-1]) <= _LOST * (
            1 + abs(self.losses[0])
        )


def dead_units(objective: Objective) -> Dead:
    """The dead units at the present weights; costs a gradient."""
    signals = flow(objective, parts=1, details=False).recorder.signals.values()
    units, dead, layers = 0, 0.0, []
    for signal in signals:
        share = signal.counts.dead_fraction if signal.counts else None
        if signal.counts is None or share is None or signal.counts.units is None:
            continue
        units += signal.counts.units
        dead += share * signal.counts.units
        if share == 1.0:
            layers.append(signal.name)
    return Dead(dead / units if units else 0.0, tuple(layers))


@contextmanager
def copied_weights(objective: Objective) -> Iterator[None]:
    """Whatever is written into the weights goes into copies."""
    before = [(p, p.data, p.grad) for p in objective.parameters]
    try:
        for p, data, _ in before:
            p.data, p.grad = data.clone(), None
        yield
    finally:
        for p, data, gradient in before:
            p.data, p.grad = data, gradient


def rollout(
    objective: Objective,
    make_optimizer: Callable[[], Optimizer],
    rate: Callable[[int], float],
    steps: int,
    *,
    look: Callable[[int, Optimizer], None] = lambda _step, _optimizer: None,
    stop: Callable[[], object] = lambda: None,
) -> Course:
    """Train for some steps, one batch after the other.

    Args:
        objective: L; its weights are as before afterwards.
        make_optimizer: over ``objective.parameters``.
        rate: learning rate of each step, counted from 0; groups may have a ``share`` of it.
        steps: how many.
        look: called at equal distances, the first time before the first step, with the steps taken.
        stop: asked before each step; a true value ends the run.
    """
    due = sorted({round(i * steps / _LOOKS) for i in range(1, _LOOKS + 1)})
    with copied_weights(objective):
        optimizer = make_optimizer()
        losses, taken = [objective.value()], 0
        look(0, optimizer)
        for step in range(steps):
            if stop():
                break
            for group in optimizer.param_groups:
                group["lr"] = rate(step) * group.get("share", 1.0)
            gradient = _gradient(objective, step % len(objective.batches))
            for p, g in zip(objective.parameters, gradient, strict=True):
                p.grad = g
            optimizer.step()
            taken += 1
            if taken in due:
                losses.append(objective.value())
                if not Course(taken, losses, None).finite:
                    return Course(taken, losses, None)
                look(taken, optimizer)
        return Course(taken, losses, dead_units(objective))


def _gradient(objective: Objective, index: int) -> list[Tensor]:
    """Of the mean loss of the batch of that number, weight decay included."""
    flat_N = torch.zeros(objective.length, dtype=objective.dtype, device=objective.device)
    count = 0.0
    for piece in objective.pieces_of(objective.batches[index], index, None):
        with torch.enable_grad(), objective.evaluation():
            total, terms = objective.terms(objective.model, piece.data)
            weighted = 0.0 * total if piece.idle else total
            found = torch.autograd.grad(
                weighted, objective.parameters, allow_unused=True, materialize_grads=True
            )
        flat_N += objective.flatten(found)
        count += 0.0 if piece.idle else terms
    objective.cost.gradients += 1
    (count,) = objective.ranks.totals(count)
    flat_N = objective.ranks.over_data(flat_N).div_(count)
    if objective.weight_decay:
        flat_N.add_(objective.flat(), alpha=objective.weight_decay)
    return objective.views(flat_N)
