"""One step of torch's recurrent layers as a pure function of input and state.

Shapes: ``B`` samples, ``I`` inputs, ``H`` units (of h), ``C`` units of the cell state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = tuple[Tensor, ...]
"""(h,) or (h, c), each of shape (B, units)."""
Cell = Callable[[Tensor, State], tuple[State, dict[str, Tensor]]]
"""(x of shape (B, I), state) -> (next state, gates by name, each of shape (B, units))."""


class Weights(NamedTuple):
    """Of one layer in one direction, with torch's names and shapes, as constants."""

    ih: Tensor
    hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    hr: Tensor | None
    """Projection of an LSTM's output."""


def weights_of(
    module: nn.RNNBase | nn.RNNCellBase, dtype: torch.dtype, suffix: str = ""
) -> Weights:
    """The weights of a layer, or of a single cell.

    Args:
        module: the layer or cell.
        dtype: to compute in.
        suffix: of the names of the weights: ``_l0``, ``_l0_reverse``; empty for a cell.
    """

    def weight(name: str) -> Tensor | None:
        value = getattr(module, name + suffix, None)
        return value.detach().to(dtype) if isinstance(value, Tensor) else None

    w_ih, w_hh, b_ih, b_hh, w_hr = map(
        weight, ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    )
    assert w_ih is not None
    assert w_hh is not None
    return Weights(w_ih, w_hh, b_ih, b_hh, w_hr)


def make_cell(mode: str, weights: Weights) -> Cell:
    """One step of a layer of this `mode_of` as a pure function."""
    return _CELLS[mode](*weights)


def mode_of(module: nn.RNNBase | nn.RNNCellBase) -> str:
    """``RNN_TANH``, ``RNN_RELU``, ``GRU`` or ``LSTM``."""
    if isinstance(module, nn.RNNCell):
        return f"RNN_{module.nonlinearity.upper()}"
    mode = getattr(module, "mode", None)
    return mode if isinstance(mode, str) else type(module).__name__.removesuffix("Cell")


def _rnn(activation: Callable[[Tensor], Tensor]) -> Callable[..., Cell]:
    def make(w_ih: Tensor, w_hh: Tensor, b_ih: Any, b_hh: Any, _: Any) -> Cell:
        def cell(x_BI: Tensor, state: State) -> tuple[State, dict[str, Tensor]]:
            return (activation(F.linear(x_BI, w_ih, b_ih) + F.linear(state[0], w_hh, b_hh)),), {}

        return cell

    return make


def _gru(w_ih: Tensor, w_hh: Tensor, b_ih: Any, b_hh: Any, _: Any) -> Cell:
    def cell(x_BI: Tensor, state: State) -> tuple[State, dict[str, Tensor]]:
        (h_BH,) = state
        x_r, x_z, x_n = F.linear(x_BI, w_ih, b_ih).chunk(3, -1)
        h_r, h_z, h_n = F.linear(h_BH, w_hh, b_hh).chunk(3, -1)
        reset, update = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        proposal = torch.tanh(x_n + reset * h_n)
        return ((1 - update) * proposal + update * h_BH,), {"reset": reset, "update": update}

    return cell


def _lstm(w_ih: Tensor, w_hh: Tensor, b_ih: Any, b_hh: Any, w_hr: Tensor | None) -> Cell:
    def cell(x_BI: Tensor, state: State) -> tuple[State, dict[str, Tensor]]:
        h_BH, c_BC = state
        i, f, g, o = (F.linear(x_BI, w_ih, b_ih) + F.linear(h_BH, w_hh, b_hh)).chunk(4, -1)
        i, f, o = torch.sigmoid(i), torch.sigmoid(f), torch.sigmoid(o)
        c_BC = f * c_BC + i * torch.tanh(g)
        h_BH = o * torch.tanh(c_BC)
        if w_hr is not None:
            h_BH = F.linear(h_BH, w_hr)
        return (h_BH, c_BC), {"input": i, "forget": f, "output": o}

    return cell


_CELLS: dict[str, Callable[..., Cell]] = {
    "RNN_TANH": _rnn(torch.tanh),
    "RNN_RELU": _rnn(torch.relu),
    "GRU": _gru,
    "LSTM": _lstm,
}


def is_recurrent(module: nn.Module) -> bool:
    """Whether the layer's equations are known: RNN (tanh, relu), GRU or LSTM."""
    return isinstance(module, nn.RNNBase) and module.mode in _CELLS


def is_recurrent_cell(module: nn.Module | None) -> bool:
    """Whether a module is one step of a recurrence, called in a loop."""
    return isinstance(module, nn.RNNCell | nn.GRUCell | nn.LSTMCell)
