"""Gradients and memory along the steps of recurrent layers, from what a `Recorder` kept of them.

Shapes: ``T`` steps, ``B`` samples, ``H`` units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.machine.containers import tensors_in
from curvcli.operators.recurrent.cells import mode_of, weights_of
from curvcli.operators.recurrent.gradients import gradients_of_states
from curvcli.operators.recurrent.lag import LagNorms, lag_norms
from curvcli.operators.recurrent.time import (
    Recurrence,
    Unrolled,
    recur,
    time_first,
    unroll,
)
from curvcli.operators.signals.activations import SATURATED
from curvcli.operators.signals.records import CellLoop, RecurrentCall
from curvcli.operators.signals.reductions import wide

# Samples whose ∂h_T/∂h_t is followed.
_LAG_SAMPLES = 32


@dataclass(frozen=True)
class GateStatistics:
    """One gate over all steps, samples and units."""

    mean: float
    saturated_fraction: float
    """Share of entries with σ' below 10 % of its largest."""


@dataclass(frozen=True)
class TimeSignal:
    """One layer and direction of one recurrent module."""

    name: str
    kind: str
    gradient_T: list[float]
    """RMS over samples of ‖∂L/∂h_t‖, by the step t as the layer takes them, unscaled."""
    lag: LagNorms
    gates: dict[str, GateStatistics]
    output_error: float
    """Largest difference of the unrolled output to the layer's own, relative to its largest entry."""
    samples: int


def time_signals(calls: Sequence[RecurrentCall], seed: int = 0) -> list[TimeSignal]:
    """Unroll what was kept of every recurrent module; several calls of one module are put together."""
    by_name: dict[str, list[RecurrentCall]] = {}
    for call in calls:
        by_name.setdefault(call.name, []).append(call)
    return [signal for same in by_name.values() for signal in _of_module(same, seed)]


@torch.inference_mode()
def _of_module(calls: list[RecurrentCall], seed: int) -> list[TimeSignal]:
    module = calls[0].module
    # ∂h_T/∂h_t is of the first piece of the data.
    samples = min(_LAG_SAMPLES, time_first(module, calls[0].output).x_TBI.shape[1])
    together = _side_by_side(calls)
    if together is not None:
        calls = [together]
    runs = [(call, *_unrolled(call)) for call in calls]
    found = []
    for index, recurrence in enumerate(runs[0][1].recurrences):
        layers = [run.recurrences[index] for _, run, _ in runs]
        found.append(
            TimeSignal(
                f"{calls[0].name}.{recurrence.name}",
                type(module).__name__,
                _gradient_by_step(layers, [g[index] for _, _, g in runs]),
                lag_norms(recurrence, seed, samples=samples, dtype=wide(recurrence.inputs_TBI)),
                _gates(layers),
                max(run.error(time_first(module, call.output).x_TBI) for call, run, _ in runs),
                sum(r.valid_TB.shape[1] for r in layers),
            )
        )
    return found


def _side_by_side(calls: list[RecurrentCall]) -> RecurrentCall | None:
    """Calls on pieces of equal length as one; None where they are not that."""
    first = calls[0]
    axis = 0 if first.module.batch_first else 1

    def joined(values: list[Any], axis: int) -> Any:
        return None if values[0] is None else torch.cat(values, axis)

    tensors = [(c.inputs, c.output) for c in calls]
    if not all(isinstance(t, Tensor) and t.dim() == 3 for pair in tensors for t in pair):
        return None
    lengths = {c.inputs.shape[1 - axis] for c in calls}
    kinds = {(c.hx is None, c.output_gradient is None, *sorted(c.final_gradients)) for c in calls}
    if len(lengths) > 1 or len(kinds) > 1:
        return None
    states = [list(tensors_in(c.hx)) for c in calls]
    hx = tuple(joined(list(same), 1) for same in zip(*states, strict=True))
    return RecurrentCall(
        first.name,
        first.module,
        joined([c.inputs for c in calls], axis),
        None if first.hx is None else hx,
        joined([c.output for c in calls], axis),
        joined([c.output_gradient for c in calls], axis),
        {i: joined([c.final_gradients[i] for c in calls], 1) for i in first.final_gradients},
    )


def _unrolled(call: RecurrentCall) -> tuple[Unrolled, list[Tensor]]:
    """The module unrolled, and ∂L/∂h of each recurrence."""
    module = call.module
    data = call.output if isinstance(call.output, Tensor) else call.output.data
    run = unroll(module, call.inputs, call.hx, dtype=_precise(data), output=call.output)
    gradient = call.output_gradient
    output_TBH = None
    if gradient is not None:
        shaped = (
            gradient if isinstance(call.output, Tensor) else call.output._replace(data=gradient)
        )
        output_TBH = time_first(module, shaped).x_TBI
    final = tuple(_batched(call.final_gradients.get(i)) for i in range(len(run.final)))
    return run, gradients_of_states(run, output_TBH, final, wide(data))[0]


def _precise(values: Tensor) -> torch.dtype:
    """States are known no better than in their own type; half precision is too little for what follows."""
    return torch.promote_types(values.dtype, torch.float32)


def _batched(state: Tensor | None) -> Tensor | None:
    return state.unsqueeze(1) if state is not None and state.dim() == 2 else state


def _gradient_by_step(layers: list[Recurrence], gradients_TBH: list[Tensor]) -> list[float]:
    steps = max(r.steps for r in layers)
    kind, device = gradients_TBH[0].dtype, gradients_TBH[0].device
    sums_T = torch.zeros(steps, dtype=kind, device=device)
    counts_T = torch.zeros(steps, dtype=kind, device=device)
    for recurrence, gradient_TBH in zip(layers, gradients_TBH, strict=True):
        valid_TB = recurrence.valid_TB.to(kind)
        sums_T[: recurrence.steps] += (gradient_TBH.square().sum(-1) * valid_TB).sum(1)
        counts_T[: recurrence.steps] += valid_TB.sum(1)
    return (sums_T / counts_T.clamp_min(1)).sqrt().cpu().tolist()


def _gates(layers: list[Recurrence]) -> dict[str, GateStatistics]:
    found = {}
    for name in layers[0].gates:
        total, saturated, count = 0.0, 0.0, 0.0
        for recurrence in layers:
            value_TBC = recurrence.gates[name]
            taken_TB1 = recurrence.valid_TB[..., None].to(value_TBC.dtype)
            closed = (4 * value_TBC * (1 - value_TBC) < SATURATED).to(value_TBC.dtype)
            total += float((value_TBC * taken_TB1).sum())
            saturated += float((closed * taken_TB1).sum())
            count += float(taken_TB1.sum()) * value_TBC.shape[-1]
        found[name] = GateStatistics(total / max(count, 1), saturated / max(count, 1))
    return found


@dataclass(frozen=True)
class LoopSignal:
    """What the unrolled loop over a cell shows."""

    lag: LagNorms
    gates: dict[str, GateStatistics]
    output_error: float
    samples: int


def loop_signals(loops: Sequence[CellLoop], seed: int = 0) -> dict[str, LoopSignal]:
    """By name, of the cells whose calls are a plain recurrence.

    Left out: cells whose state is changed between two calls (dropout, masks, attention), whose ∂h_T/∂h_t runs
    through code of the user's own, and batches that change their size on the way.
    """
    found: dict[str, LoopSignal] = {}
    for loop in loops:
        same_shape = len({x.shape for x in loop.inputs}) == 1
        if loop.chained and same_shape and len(loop.inputs) > 1:
            found[loop.name] = _of_loop(loop, seed)
    return found


@torch.inference_mode()
def _of_loop(loop: CellLoop, seed: int) -> LoopSignal:
    module, kind = loop.module, _precise(loop.outputs[0])
    x_TBI = torch.stack([torch.atleast_2d(x) for x in loop.inputs]).to(kind)
    states = 2 if isinstance(module, nn.LSTMCell) else 1
    shape = (x_TBI.shape[1], module.hidden_size)
    start = (
        tuple(torch.atleast_2d(s).to(kind) for s in loop.start)
        if loop.start
        else tuple(x_TBI.new_zeros(shape) for _ in range(states))
    )
    valid_TB = torch.ones(x_TBI.shape[:2], dtype=torch.bool, device=x_TBI.device)
    own_TBH = torch.stack([torch.atleast_2d(h) for h in loop.outputs]).to(kind)
    run = recur(mode_of(module), weights_of(module, kind), x_TBI, start, valid_TB, own_TBH)
    difference = (run.each.h_TBH - own_TBH).abs().max()
    scale = own_TBH.abs().max().clamp_min(torch.finfo(kind).tiny)
    return LoopSignal(
        lag_norms(run, seed, dtype=wide(own_TBH)),
        _gates([run]),
        float(difference / scale),
        shape[0],
    )
