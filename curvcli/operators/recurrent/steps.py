"""All steps of a recurrent layer at once, from its states: gates, and each step's transposed Jacobian in closed form.

Once the states are known, no step waits for another: the gates of all of them are two matrix products. With σ' and
tanh' from the gates, the gradient that a step passes on is a few products of vectors and one with the weights.
Equations: Hochreiter & Schmidhuber (1997), Cho et al. (2014), in the form of torch's documentation.

Shapes: ``T`` steps, ``B`` samples, ``I`` inputs, ``H`` units (of h), ``C`` units of the cell state, ``G`` gates,
``K`` vectors for each sample.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from curvcli.operators.recurrent.cells import State, Weights


class Steps(Protocol):
    """Every step of one layer in one direction."""

    @property
    def h_TBH(self) -> Tensor:
        """h after each step, by the layer's equations from the state before it."""

    @property
    def gates(self) -> dict[str, Tensor]:
        """Gate activations by name, shape (T, B, C); none in a plain RNN."""

    def pull_back(self, step: int, vectors: State, into: State) -> None:
        """Vectors times ∂(state after)/∂(state before).

        Args:
            step: which.
            vectors: by part of the state, (B', K, units) for the first B' samples.
            into: where the product is written; of the same shapes, contiguous.
        """

    def to_inputs(self, vectors: State) -> Tensor:
        """Vectors at all steps, (T, B, units), times ∂(state after)/∂x, shape (T, B, I)."""


def before(states_TBC: Tensor, start_BC: Tensor) -> Tensor:
    """The state before each step, from that after each step and the initial one."""
    return torch.cat([start_BC[None], states_TBC[:-1]])


class _Space:
    """Memory for what is needed only within a step, used again for the next."""

    def __init__(self) -> None:
        self._found: Tensor | None = None

    def of(self, vectors_BKC: Tensor, gates: int, units: int) -> Tensor:
        """Shape (B, K, gates, units)."""
        shape = (*vectors_BKC.shape[:2], gates, units)
        if self._found is None or self._found.shape != shape:
            self._found = vectors_BKC.new_empty(shape)
        return self._found


@dataclass(frozen=True)
class _Gated:
    """RNN and GRU: ∂h/∂h' = diag(carry) + Σ_g diag(recurrent_g) W_g."""

    weights: Weights
    h_TBH: Tensor
    gates: dict[str, Tensor]
    recurrent_TBGH: Tensor
    """∂h/∂(W_g h')."""
    inputs_TBGH: Tensor
    """∂h/∂(W_g x)."""
    carry_TBH: Tensor | None
    space: _Space = field(default_factory=_Space)

    def pull_back(self, step: int, vectors: State, into: State) -> None:
        (h_BKH,), (back_BKH,) = vectors, into
        b, k, units = h_BKH.shape
        gates_BKGH = self.space.of(h_BKH, self.recurrent_TBGH.shape[2], units)
        torch.mul(h_BKH[:, :, None], self.recurrent_TBGH[step, :b, None], out=gates_BKGH)
        torch.mm(gates_BKGH.view(b * k, -1), self.weights.hh, out=back_BKH.view(b * k, units))
        if self.carry_TBH is not None:
            back_BKH.addcmul_(h_BKH, self.carry_TBH[step, :b, None])

    def to_inputs(self, vectors: State) -> Tensor:
        (h_TBH,) = vectors
        return (h_TBH[:, :, None] * self.inputs_TBGH).flatten(2) @ self.weights.ih


@dataclass(frozen=True)
class _Lstm:
    """With m = o ⊙ tanh(c) and h = m or W_hr m: gates i, f, g act on c, gate o on m."""

    weights: Weights
    h_TBH: Tensor
    gates: dict[str, Tensor]
    slope_TBC: Tensor
    """∂m/∂c."""
    cell_TB3C: Tensor
    """∂c/∂ of i, f, g before their activation."""
    output_TBC: Tensor
    """∂m/∂ of o before its activation."""
    space: _Space = field(default_factory=_Space)

    def _parts(self, vectors: State) -> State:
        """Vectors with respect to m, and to c by way of m as well."""
        h, c = vectors
        return (h if self.weights.hr is None else h @ self.weights.hr), c

    def pull_back(self, step: int, vectors: State, into: State) -> None:
        m_BKC, c_BKC = self._parts(vectors)
        b, k, units = m_BKC.shape
        back_BKH, cell_BKC = into
        torch.addcmul(c_BKC, m_BKC, self.slope_TBC[step, :b, None], out=cell_BKC)
        gates_BK4C = self.space.of(m_BKC, 4, units)
        torch.mul(cell_BKC[:, :, None], self.cell_TB3C[step, :b, None], out=gates_BK4C[:, :, :3])
        torch.mul(m_BKC, self.output_TBC[step, :b, None], out=gates_BK4C[:, :, 3])
        torch.mm(gates_BK4C.view(b * k, -1), self.weights.hh, out=back_BKH.view(b * k, -1))
        cell_BKC.mul_(self.gates["forget"][step, :b, None])

    def to_inputs(self, vectors: State) -> Tensor:
        m_TBC, c_TBC = self._parts(vectors)
        cell_TBC = torch.addcmul(c_TBC, m_TBC, self.slope_TBC)
        output_TBC = m_TBC * self.output_TBC
        cell_TB3C = cell_TBC[:, :, None] * self.cell_TB3C
        return torch.cat([cell_TB3C.flatten(2), output_TBC], 2) @ self.weights.ih


def in_dtype(steps: Steps, dtype: torch.dtype) -> Steps:
    """The same steps for vectors of another dtype."""

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(dtype)
        if isinstance(value, dict):
            return {name: cast(v) for name, v in value.items()}
        return Weights(*map(cast, value)) if isinstance(value, Weights) else value

    assert isinstance(steps, _Gated | _Lstm)
    changed = {f.name: cast(getattr(steps, f.name)) for f in fields(steps)}
    return replace(steps, **{**changed, "space": _Space()})


def rnn_steps(
    activation: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]
) -> Callable[[Weights, Tensor, Tensor], Steps]:
    """Of a plain RNN.

    Args:
        activation: its function.
        slope: the derivative of that, from its value.
    """

    def steps(weights: Weights, x_TBI: Tensor, h_TBH: Tensor) -> Steps:
        after_TBH = activation(_linear(weights, x_TBI, h_TBH))
        slope_TB1H = slope(after_TBH)[:, :, None]
        return _Gated(weights, after_TBH, {}, slope_TB1H, slope_TB1H, None)

    return steps


def gru_steps(weights: Weights, x_TBI: Tensor, h_TBH: Tensor) -> Steps:
    """Of a GRU: h = (1 − z) n + z h' with n = tanh(x_n + r ⊙ W_n h')."""
    x_r, x_z, x_n = F.linear(x_TBI, weights.ih, weights.b_ih).chunk(3, -1)
    h_r, h_z, h_n = F.linear(h_TBH, weights.hh, weights.b_hh).chunk(3, -1)
    reset, update = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    proposal = torch.tanh(x_n + reset * h_n)
    by_n = (1 - update) * (1 - proposal.square())
    by_r = by_n * h_n * reset * (1 - reset)
    by_z = (h_TBH - proposal) * update * (1 - update)
    return _Gated(
        weights,
        (1 - update) * proposal + update * h_TBH,
        {"reset": reset, "update": update},
        torch.stack([by_r, by_z, by_n * reset], 2),
        torch.stack([by_r, by_z, by_n], 2),
        update,
    )


def lstm_gates(weights: Weights, x_TBI: Tensor, h_TBH: Tensor) -> list[Tensor]:
    """i, f, g, o of every step, shape (T, B, C) each, from x and the h before it."""
    i, f, g, o = _linear(weights, x_TBI, h_TBH).chunk(4, -1)
    return [torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)]


def cell_states(gates: list[Tensor], start_BC: Tensor, valid_TB: Tensor | None) -> Tensor:
    """c after every step, shape (T, B, C): c = f ⊙ c' + i ⊙ g, the only thing that waits for the step before.

    Args:
        gates: from `lstm_gates`.
        start_BC: c before the first step.
        valid_TB: samples that take each step; None: all.
    """
    i, f, g, _ = gates
    c_TBC = i * g
    if valid_TB is not None:
        keeps_TB1 = ~valid_TB[..., None]
        c_TBC = c_TBC.masked_fill_(keeps_TB1, 0.0)
        f = f.masked_fill(keeps_TB1, 1.0)
    c_BC = start_BC
    for proposed_BC, f_BC in zip(c_TBC.unbind(), f.unbind(), strict=True):
        c_BC = proposed_BC.addcmul_(f_BC, c_BC)
    return c_TBC


def lstm_steps(weights: Weights, gates: list[Tensor], c_TBC: Tensor, c_before_TBC: Tensor) -> Steps:
    """Of an LSTM from its gates and the cell states after and before each step."""
    i, f, g, o = gates
    tanh_TBC = torch.tanh(c_TBC)
    m_TBC = o * tanh_TBC
    return _Lstm(
        weights,
        m_TBC if weights.hr is None else F.linear(m_TBC, weights.hr),
        {"input": i, "forget": f, "output": o},
        o * (1 - tanh_TBC.square()),
        torch.stack([g * i * (1 - i), c_before_TBC * f * (1 - f), i * (1 - g.square())], 2),
        m_TBC * (1 - o),
    )


def _linear(weights: Weights, x_TBI: Tensor, h_TBH: Tensor) -> Tensor:
    return F.linear(x_TBI, weights.ih, weights.b_ih).add_(F.linear(h_TBH, weights.hh, weights.b_hh))
