"""Recurrent layers along time, with their own weights: what a fused kernel does not show.

`unroll` finds the state after every step of an ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``, and the derivative of each
step with respect to the state before it.

Shapes: ``T`` steps, ``B`` samples, ``I`` inputs, ``H`` units (of h), ``C`` units of the cell state, ``K`` vectors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from curvcli.operators.recurrent.cells import (
    Cell,
    State,
    Weights,
    is_recurrent,
    make_cell,
    mode_of,
    weights_of,
)
from curvcli.operators.recurrent.steps import (
    Steps,
    before,
    cell_states,
    gru_steps,
    lstm_gates,
    lstm_steps,
    rnn_steps,
)


@dataclass(frozen=True)
class Recurrence:
    """One layer in one direction. Steps are counted as it takes them."""

    layer: int
    reverse: bool
    cell: Cell
    inputs_TBI: Tensor
    initial: State
    states: State
    """After each step, (T, B, units); a sample whose sequence does not reach step k keeps the state it had."""
    valid_TB: Tensor
    """Whether a sample takes step k."""
    each: Steps
    """Gates and derivatives of every step."""
    whole: bool
    """Whether every sample takes every step."""

    @property
    def gates(self) -> dict[str, Tensor]:
        """Gate activations by name, shape (T, B, units); none in a plain RNN."""
        return self.each.gates

    @property
    def steps(self) -> int:
        """T."""
        return len(self.inputs_TBI)

    @property
    def units(self) -> int:
        """H, the width of h."""
        return self.states[0].shape[-1]

    @property
    def name(self) -> str:
        """``l0``, or ``l0 reverse``: as torch names the weights."""
        return f"l{self.layer} reverse" if self.reverse else f"l{self.layer}"

    def last_step(self) -> Tensor:
        """The last step each sample takes, shape (B,); -1 for an empty sequence."""
        steps_T1 = torch.arange(self.steps, device=self.valid_TB.device)[:, None]
        return torch.where(self.valid_TB, steps_T1, -1).amax(0)

    def before(self, step: int) -> State:
        """The state before a step."""
        return tuple(s[step - 1] for s in self.states) if step else self.initial

    def pull_back(
        self, step: int, vectors: State, into: State | None = None, each: Steps | None = None
    ) -> State:
        """Vectors times ∂(state after)/∂(state before); as they are for samples that do not take the step.

        Args:
            step: which.
            vectors: by part of the state, (B', K, units) for the first B' samples.
            into: where the product is written; of the same shapes, contiguous.
            each: the steps in another dtype, that of the vectors.
        """
        if into is None:
            into = tuple(
                torch.empty_like(v, memory_format=torch.contiguous_format) for v in vectors
            )
        (each or self.each).pull_back(step, vectors, into)
        if not self.whole:
            taken_B11 = self.valid_TB[step, : len(vectors[0]), None, None]
            for back, vector in zip(into, vectors, strict=True):
                back.copy_(torch.where(taken_B11, back, vector))
        return into


@dataclass(frozen=True)
class Unrolled:
    """A recurrent module, step by step."""

    recurrences: list[Recurrence]
    output_TBH: Tensor
    """h of the last layer (both directions side by side) by its equations, zero beyond the end of a sequence."""
    final: State
    """h_n and, for an LSTM, c_n, of shape (layers · directions, B, units)."""
    lengths_B: Tensor

    def error(self, own_output: Any) -> float:
        """Largest difference to the module's own output, relative to its largest entry."""
        own_TBH = own_output.detach().to(self.output_TBH.dtype)
        difference = (self.output_TBH - own_TBH).abs().max()
        return float(difference / own_TBH.abs().max().clamp_min(torch.finfo(own_TBH.dtype).tiny))


@dataclass
class _Input:
    """A module's input, time first."""

    x_TBI: Tensor
    lengths_B: Tensor


def unroll(
    module: nn.RNNBase,
    inputs: Tensor | PackedSequence,
    hx: Tensor | State | None = None,
    *,
    dtype: torch.dtype | None = None,
    output: Tensor | PackedSequence | None = None,
) -> Unrolled:
    """The module's states at all steps, with its own weights (held constant), in ``dtype``.

    Follows torch's equations for RNN (tanh, relu), GRU and LSTM (with projections), several layers, both
    directions, either axis order, unbatched and packed input. Dropout between layers is off.

    Args:
        module: the recurrent module.
        inputs: as the module takes them.
        hx: initial state as the module takes it; zeros by default.
        dtype: to compute in; the module's own by default. Decays over hundreds of steps need float64.
        output: what the module returned for this: the states of its last layer, which are then not run again.
    """
    dtype = dtype or next(module.parameters()).dtype
    data = time_first(module, inputs)
    x_TBI, lengths_B = data.x_TBI.to(dtype), data.lengths_B
    directions = 2 if module.bidirectional else 1
    initial = _initial(module, hx, data, dtype)
    last = module.num_layers - 1
    known: list[Tensor | None] = [None] * directions
    if output is not None:
        known = list(time_first(module, output).x_TBI.to(dtype).chunk(directions, -1))
    recurrences: list[Recurrence] = []
    output_TBH = x_TBI
    for layer in range(last + 1):
        states: list[Tensor] = []
        computed: list[Tensor] = []
        for direction in range(directions):
            index = layer * directions + direction
            start = tuple(s[index] for s in initial)
            known_TBH = known[direction] if layer == last else None
            one = _run(module, layer, direction == 1, x_TBI, start, lengths_B, known_TBH)
            recurrences.append(one)
            for values, h_TBH in ((states, one.states[0]), (computed, one.each.h_TBH)):
                inside_TBH = h_TBH if one.whole else h_TBH * one.valid_TB[..., None]
                values.append(inside_TBH.flip(0) if one.reverse else inside_TBH)
        x_TBI, output_TBH = torch.cat(states, -1), torch.cat(computed, -1)
    final = tuple(
        torch.stack([r.states[part][-1] for r in recurrences]) for part in range(len(initial))
    )
    return Unrolled(recurrences, output_TBH, final, lengths_B)


def time_first(module: nn.RNNBase, values: Tensor | PackedSequence) -> _Input:
    """Input or output of the module as (T, B, features) in the order of the caller's samples."""
    if isinstance(values, PackedSequence):
        padded_TBI, lengths = pad_packed_sequence(values)
        return _Input(padded_TBI.detach(), lengths.to(padded_TBI.device))
    x = values.detach()
    if x.dim() == 2:
        x = x.unsqueeze(1)
    elif module.batch_first:
        x = x.transpose(0, 1)
    lengths_B = torch.full((x.shape[1],), x.shape[0], device=x.device)
    return _Input(x, lengths_B)


def _run(
    module: nn.RNNBase,
    layer: int,
    reverse: bool,
    x_TBI: Tensor,
    start: State,
    lengths_B: Tensor,
    known_TBH: Tensor | None,
) -> Recurrence:
    weights = weights_of(module, x_TBI.dtype, f"_l{layer}{'_reverse' if reverse else ''}")
    valid_TB = _valid(lengths_B, len(x_TBI))
    if reverse:
        x_TBI, valid_TB = x_TBI.flip(0), valid_TB.flip(0)
        known_TBH = None if known_TBH is None else known_TBH.flip(0)
    return recur(mode_of(module), weights, x_TBI, start, valid_TB, known_TBH, layer, reverse)


def recur(
    mode: str,
    weights: Weights,
    x_TBI: Tensor,
    start: State,
    valid_TB: Tensor,
    known_TBH: Tensor | None,
    layer: int = 0,
    reverse: bool = False,
) -> Recurrence:
    """One layer over all steps, from the state ``start``.

    Args:
        mode: from `mode_of`.
        weights: held constant.
        x_TBI: inputs in the order of the steps.
        start: the state before.
        valid_TB: samples that take each step.
        known_TBH: h after each step, if known; else the layer is run.
        layer: its number.
        reverse: whether it runs backwards.
    """
    cell = make_cell(mode, weights)
    whole = bool(valid_TB.all())
    if known_TBH is None:
        known_TBH = _walk(cell, x_TBI, start, valid_TB, whole)
    elif not whole:
        known_TBH = _held(known_TBH, start[0], valid_TB)
    h_before_TBH = before(known_TBH, start[0])
    states: State = (known_TBH,)
    each: Steps
    if mode == "LSTM":
        gates = lstm_gates(weights, x_TBI, h_before_TBH)
        c_TBC = cell_states(gates, start[1], None if whole else valid_TB)
        states = (known_TBH, c_TBC)
        each = lstm_steps(weights, gates, c_TBC, before(c_TBC, start[1]))
    else:
        each = _STEPS[mode](weights, x_TBI, h_before_TBH)
    return Recurrence(layer, reverse, cell, x_TBI, start, states, valid_TB, each, whole)


_STEPS = {
    "RNN_TANH": rnn_steps(torch.tanh, lambda h: 1 - h.square()),
    "RNN_RELU": rnn_steps(torch.relu, lambda h: (h > 0).to(h.dtype)),
    "GRU": gru_steps,
}


def _walk(cell: Cell, x_TBI: Tensor, state: State, valid_TB: Tensor, whole: bool) -> Tensor:
    """h after every step, one after the other."""
    found = []
    for x_BI, valid_B in zip(x_TBI, valid_TB, strict=True):
        following, _ = cell(x_BI, state)
        if not whole:
            following = tuple(
                torch.where(valid_B[:, None], new, old)
                for new, old in zip(following, state, strict=True)
            )
        state = following
        found.append(state[0])
    return torch.stack(found)


def _held(h_TBH: Tensor, start_BH: Tensor, valid_TB: Tensor) -> Tensor:
    """h where a sample takes a step, and the one it had where it does not."""
    steps_T1 = torch.arange(1, len(h_TBH) + 1, device=h_TBH.device)[:, None]
    source_TB = torch.where(valid_TB, steps_T1, 0).cummax(0).values
    every = torch.cat([start_BH[None], h_TBH])
    return every.gather(0, source_TB[..., None].expand_as(h_TBH))


def _valid(lengths_B: Tensor, steps: int) -> Tensor:
    return torch.arange(steps, device=lengths_B.device)[:, None] < lengths_B[None]


def _initial(
    module: nn.RNNBase, hx: Tensor | State | None, data: _Input, dtype: torch.dtype
) -> State:
    rows = module.num_layers * (2 if module.bidirectional else 1)
    widths = [module.proj_size or module.hidden_size]
    if module.mode == "LSTM":
        widths.append(module.hidden_size)
    x_TBI = data.x_TBI
    if hx is None:
        return tuple(
            torch.zeros(rows, x_TBI.shape[1], w, dtype=dtype, device=x_TBI.device) for w in widths
        )
    given = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    return tuple(
        (s.unsqueeze(1) if s.dim() == 2 else s).detach().to(device=x_TBI.device, dtype=dtype)
        for s in given
    )


def recurrent_modules(model: nn.Module) -> Iterator[tuple[str, nn.RNNBase]]:
    """Every RNN, GRU and LSTM of the model with its name."""
    for name, module in model.named_modules():
        if is_recurrent(module):
            assert isinstance(module, nn.RNNBase)
            yield name or type(module).__name__, module
