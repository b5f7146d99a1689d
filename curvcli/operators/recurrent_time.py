"""Recurrent layers unrolled in time with their own weights: what a fused kernel does not show.

`unroll` runs an ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM`` step by step, with every state a tensor of its own, so that
derivatives with respect to the state at any step exist. `lag_norms` measures ∂h_T/∂h_t over the lag T − t.

Shapes: ``T`` steps, ``B`` samples, ``I`` inputs, ``H`` units (of h), ``C`` units of the cell state, ``K`` probes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from curvcli.operators.recurrent_cells import Cell, State, is_recurrent, make_cell

# Up to so many units the Frobenius norm of a time Jacobian is exact: one product for each unit.
EXACT_UNITS = 64
# Products with Gaussian vectors for wider layers.
PROBES = 16
# Rows (vectors times samples) that are carried through time at once.
_ROWS = 2048


@dataclass(frozen=True)
class Recurrence:
    """One layer in one direction, unrolled. Steps are counted as it takes them.

    ``states[k]`` is the state after step k, a node of one autograd graph; a sample whose sequence does not
    reach step k keeps the state it had.
    """

    layer: int
    reverse: bool
    cell: Cell
    inputs_TBI: Tensor
    initial: State
    states: list[State]
    valid_TB: Tensor
    """Whether a sample takes step k."""
    gates: dict[str, Tensor]
    """Gate activations by name, shape (T, B, units), detached; none in a plain RNN."""

    @property
    def steps(self) -> int:
        """T."""
        return len(self.states)

    @property
    def units(self) -> int:
        """H, the width of h."""
        return self.states[0][0].shape[-1]

    @property
    def name(self) -> str:
        """``l0``, or ``l0 reverse``: as torch names the weights."""
        return f"l{self.layer} reverse" if self.reverse else f"l{self.layer}"

    def last_step(self) -> Tensor:
        """The last step each sample takes, shape (B,); -1 for an empty sequence."""
        steps_T1 = torch.arange(self.steps, device=self.valid_TB.device)[:, None]
        return torch.where(self.valid_TB, steps_T1, -1).amax(0)


@dataclass(frozen=True)
class Unrolled:
    """A recurrent module, step by step, as one autograd graph over its states."""

    recurrences: list[Recurrence]
    output_TBH: Tensor
    """The last layer's states (both directions side by side), zero beyond the end of a sequence."""
    final: State
    """h_n and, for an LSTM, c_n, of shape (layers · directions, B, units)."""
    lengths_B: Tensor

    def error(self, own_output: Any) -> float:
        """Largest difference to the module's own output, relative to its largest entry."""
        own_TBH = own_output.to(self.output_TBH.dtype)
        own_TBH = own_TBH.detach()
        difference = (self.output_TBH.detach() - own_TBH).abs().max()
        return float(difference / own_TBH.abs().max().clamp_min(torch.finfo(own_TBH.dtype).tiny))


class LagNorms(NamedTuple):
    """‖∂h_T/∂h_t‖ over the lag."""

    norms_T: Tensor
    """RMS over samples of ‖∂h_T/∂h_t‖_F / √H for lag 0 … T − 1: 1 at lag 0 for t = T."""
    errors_T: Tensor | None
    """Standard errors from the probes; None: exact."""
    cell_norms_T: Tensor | None
    """The same for ∂h_T/∂c_t of an LSTM."""
    samples: int
    """Samples it is the mean over."""


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
) -> Unrolled:
    """Run the module step by step with its own weights (held constant), in ``dtype``.

    Follows torch's equations for RNN (tanh, relu), GRU and LSTM (with projections), several layers, both
    directions, either axis order, unbatched and packed input. Dropout between layers is off.

    Args:
        module: the recurrent module.
        inputs: as the module takes them.
        hx: initial state as the module takes it; zeros by default.
        dtype: to compute in; the module's own by default. Decays over hundreds of steps need float64.
    """
    dtype = dtype or next(module.parameters()).dtype
    data = time_first(module, inputs)
    x_TBI, lengths_B = data.x_TBI.to(dtype), data.lengths_B
    directions = 2 if module.bidirectional else 1
    initial = _initial(module, hx, data, dtype)
    recurrences: list[Recurrence] = []
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            start = tuple(s[index] for s in initial)
            one = _run(module, layer, direction == 1, x_TBI, start, lengths_B)
            recurrences.append(one)
            states = [s[0] for s in one.states]
            h_TBH = torch.stack(states[::-1] if one.reverse else states)
            outputs.append(torch.where(_valid(lengths_B, one.steps)[..., None], h_TBH, 0.0))
        x_TBI = torch.cat(outputs, -1)
    final = tuple(
        torch.stack([r.states[-1][part] for r in recurrences]) for part in range(len(initial))
    )
    return Unrolled(recurrences, x_TBI, final, lengths_B)


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


def gradients_of_states(
    unrolled: Unrolled, output_TBH: Tensor | None, final: tuple[Tensor | None, ...]
) -> list[Tensor]:
    """∂L/∂h_t of every recurrence, shape (T, B, H), from ∂L/∂output and ∂L/∂(h_n, c_n).

    These are total derivatives: through all later steps and layers. Steps as the recurrence takes them.
    """
    reached = [
        (value, gradient.to(value.dtype))
        for value, gradient in zip(
            (unrolled.output_TBH, *unrolled.final), (output_TBH, *final), strict=False
        )
        if gradient is not None
    ]
    states = [[s[0] for s in r.states] for r in unrolled.recurrences]
    flat = [h for hs in states for h in hs]
    parts = iter(
        torch.autograd.grad(
            [value for value, _ in reached],
            flat,
            [gradient for _, gradient in reached],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    )
    return [torch.stack([next(parts) for _ in hs]) for hs in states]


def lag_norms(
    recurrence: Recurrence, seed: int = 0, exact_units: int = EXACT_UNITS, probes: int = PROBES
) -> LagNorms:
    """‖∂h_T/∂h_t‖_F / √H over the lag T − t, root mean square over samples.

    T is each sample's last step. ∂h_T/∂h_t holds the cell state c_t fixed; ∂h_T/∂c_t is given beside it. Exact by
    one product for each unit up to ``exact_units`` units, else estimated with Gaussian vectors:
    E‖Jᵀu‖² = ‖J‖_F².

    Args:
        recurrence: from `unroll`.
        seed: of the vectors.
        exact_units: widest layer that is done exactly.
        probes: vectors for wider ones.
    """
    b, units = recurrence.states[-1][0].shape
    exact = units <= exact_units
    device, dtype = recurrence.inputs_TBI.device, recurrence.inputs_TBI.dtype
    if exact:
        vectors_KH = torch.eye(units, dtype=dtype, device=device) * units**0.5
    else:
        generator = torch.Generator().manual_seed(seed)
        drawn_KH = torch.randn(probes, units, generator=generator, dtype=torch.float64)
        vectors_KH = drawn_KH.to(device=device, dtype=dtype)
    k = len(vectors_KH)
    samples = min(b, max(1, _ROWS // k))
    last_B = recurrence.last_step()[:samples]
    width = len(recurrence.initial)
    sums_KST = torch.zeros(k, width, recurrence.steps, dtype=dtype, device=device)
    counts_T = torch.zeros(recurrence.steps, dtype=dtype, device=device)
    pulled: State = tuple(
        vectors_KH.repeat_interleave(samples, 0)
        if part == 0
        else torch.zeros(k * samples, s.shape[-1], dtype=dtype, device=device)
        for part, s in enumerate(recurrence.initial)
    )
    for step in reversed(range(recurrence.steps)):
        counted_B = recurrence.valid_TB[step, :samples]
        lag_B = torch.where(counted_B, last_B - step, 0)
        weight_B = counted_B.to(dtype)
        counts_T.index_add_(0, lag_B, weight_B)
        for part, vector in enumerate(pulled):
            squares_KB = vector.square().sum(-1).view(k, samples) * weight_B / units
            sums_KST[:, part].index_add_(1, lag_B, squares_KB)
        before = recurrence.states[step - 1] if step else recurrence.initial
        back = _pull_back(recurrence, step, before, pulled, k, samples)
        kept = counted_B.repeat(k)[:, None]
        pulled = tuple(torch.where(kept, new, old) for new, old in zip(back, pulled, strict=True))
    by_lag_KST = sums_KST / counts_T
    mean_ST = by_lag_KST.mean(0)
    errors_T = None
    if not exact:
        # √ of a mean of squares: the error of the square over twice the root.
        spread_T = by_lag_KST[:, 0].std(0) / k**0.5
        errors_T = spread_T / (2 * mean_ST[0].sqrt().clamp_min(torch.finfo(dtype).tiny))
    roots_ST = mean_ST.sqrt()
    return LagNorms(roots_ST[0], errors_T, roots_ST[1] if width == 2 else None, samples)


def _pull_back(
    recurrence: Recurrence, step: int, before: State, vectors: State, k: int, samples: int
) -> State:
    """The transposed Jacobian of one step times K vectors for each sample, all in one product."""
    with torch.enable_grad():
        leaves = tuple(s.detach()[:samples].repeat(k, 1).requires_grad_() for s in before)
        after, _ = recurrence.cell(recurrence.inputs_TBI[step, :samples].repeat(k, 1), leaves)
    return torch.autograd.grad(after, leaves, vectors, allow_unused=True, materialize_grads=True)


def _run(
    module: nn.RNNBase,
    layer: int,
    reverse: bool,
    x_TBI: Tensor,
    start: State,
    lengths_B: Tensor,
) -> Recurrence:
    cell = make_cell(module, x_TBI.dtype, f"_l{layer}{'_reverse' if reverse else ''}")
    valid_TB = _valid(lengths_B, len(x_TBI))
    if reverse:
        x_TBI, valid_TB = x_TBI.flip(0), valid_TB.flip(0)
    return run_cell(cell, x_TBI, start, valid_TB, layer, reverse)


def run_cell(
    cell: Cell,
    x_TBI: Tensor,
    start: State,
    valid_TB: Tensor,
    layer: int = 0,
    reverse: bool = False,
) -> Recurrence:
    """One cell over all steps, from the state ``start``."""
    whole = bool(valid_TB.all())
    # A leaf that asks for derivatives: every later state becomes a node, whatever the weights ask for.
    state: State = tuple(s.detach().requires_grad_() for s in start)
    states: list[State] = []
    gates: dict[str, list[Tensor]] = {}
    with torch.enable_grad():
        for x_BI, valid_B in zip(x_TBI, valid_TB, strict=True):
            following, opened = cell(x_BI, state)
            if not whole:
                following = tuple(
                    torch.where(valid_B[:, None], new, old)
                    for new, old in zip(following, state, strict=True)
                )
            state = following
            states.append(state)
            for name, value_BC in opened.items():
                gates.setdefault(name, []).append(value_BC.detach())
    stacked = {name: torch.stack(values) for name, values in gates.items()}
    return Recurrence(layer, reverse, cell, x_TBI, start, states, valid_TB, stacked)


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
