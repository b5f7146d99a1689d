"""Activation functions: which units never fire, and where the derivative is all but zero.

Both are read off each call of the function itself, whether a module or a bare function made it.
"""

from collections.abc import Callable
from copy import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from curvcli.operators.signals.reductions import counted

# |tanh| > 0.95: the derivative is below this share of the largest. The same share for all functions.
SATURATED = 1 - 0.95**2
# SageMaker Debugger's sign of a saturated unit: a derivative that float32 cannot tell from zero.
FLAT = 1e-7


class Activation(NamedTuple):
    """What is known of an activation function.

    Args:
        name: as users know it.
        floor: a unit is dead when its input never exceeds this over all data, so that its derivative is
            (nearly) zero throughout; None for functions without a flat left side.
        derivative: φ' from the output y, for functions that are flat on both sides; None for the others.
        largest: the largest derivative.
    """

    name: str
    floor: float | None = None
    derivative: Callable[[Tensor], Tensor] | None = None
    largest: float = 1.0


def _inside(lower: float, upper: float) -> Callable[[Tensor], Tensor]:
    return lambda y: ((y > lower) & (y < upper)).to(y.dtype)


_RELU = Activation("relu", 0.0)
_TANH = Activation("tanh", derivative=lambda y: 1 - y * y)
_SIGMOID = Activation("sigmoid", derivative=lambda y: y * (1 - y), largest=0.25)
# Where the derivative of a smooth rectifier has fallen to about 1e-4.
_ELU, _SELU, _CELU = (Activation(n, -9.0) for n in ("elu", "selu", "celu"))
_GELU, _SILU, _MISH = Activation("gelu", -4.5), Activation("silu", -12.0), Activation("mish", -12.0)
_SOFTPLUS, _HARDSWISH = Activation("softplus", -9.0), Activation("hardswish", -3.0)
_RELU6 = Activation("relu6", 0.0)
_HARDSIGMOID = Activation("hardsigmoid", derivative=_inside(0.0, 1.0))
_HARDTANH = Activation("hardtanh", derivative=_inside(-1.0, 1.0))
_SOFTSIGN = Activation("softsign", derivative=lambda y: (1 - y.abs()).square())

FUNCTIONS: dict[Any, Activation] = {
    **dict.fromkeys(
        (F.relu, F.relu_, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_), _RELU
    ),
    **dict.fromkeys((F.tanh, torch.tanh, torch.Tensor.tanh, torch.Tensor.tanh_, torch.tanh_), _TANH),
    **dict.fromkeys(
        (F.sigmoid, torch.sigmoid, torch.sigmoid_, torch.Tensor.sigmoid, torch.Tensor.sigmoid_,
         torch.special.expit),
        _SIGMOID,
    ),
    F.gelu: _GELU,
    F.silu: _SILU,
    F.mish: _MISH,
    F.softplus: _SOFTPLUS,
    F.hardswish: _HARDSWISH,
    F.relu6: _RELU6,
    F.hardsigmoid: _HARDSIGMOID,
    F.softsign: _SOFTSIGN,
    **dict.fromkeys((F.hardtanh, F.hardtanh_), _HARDTANH),
    **dict.fromkeys((F.elu, F.elu_), _ELU),
    **dict.fromkeys((F.selu, F.selu_, torch.selu, torch.selu_), _SELU),
    **dict.fromkeys((F.celu, F.celu_, torch.celu, torch.celu_), _CELU),
}  # fmt: skip


class ActivationCounts:
    """Dead units and saturated entries of one layer, accumulated over the pieces of the data."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation
        self._highest_C: Tensor | None = None
        self._entries = 0
        self._saturated = 0.0
        self._flat = 0.0

    def before(self, x: Tensor, unit_axis: int) -> None:
        """Look at the input, before a function that may work in place."""
        if self.activation.floor is None or x.numel() == 0:
            return
        others = [axis for axis in range(x.dim()) if axis != unit_axis % x.dim()]
        self._raise_to(x.detach().amax(others) if others else x.detach())

    def _raise_to(self, highest_C: Tensor) -> None:
        if self._highest_C is None or self._highest_C.shape != highest_C.shape:
            self._highest_C = highest_C
        else:
            self._highest_C = torch.maximum(self._highest_C, highest_C)

    def after(self, y: Tensor) -> None:
        """Look at the output."""
        if self.activation.derivative is None or y.numel() == 0:
            return
        slope_1E = self.activation.derivative(y.detach().reshape(1, -1))
        saturated = float(counted(torch.lt, slope_1E, SATURATED * self.activation.largest))
        self._entries += y.numel()
        self._saturated += saturated
        # No entry is flat where none is saturated.
        self._flat += float(counted(torch.lt, slope_1E, FLAT)) if saturated else 0.0

    def on_host(self) -> "ActivationCounts":
        """A copy with its tensor on the CPU."""
        found = copy(self)
        if self._highest_C is not None:
            found._highest_C = self._highest_C.cpu()
        return found

    def __getstate__(self) -> dict[str, Any]:
        # Functions do not travel between processes: their names do.
        return {**self.__dict__, "activation": self.activation.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        named = next(a for a in FUNCTIONS.values() if a.name == state["activation"])
        self.__dict__.update(state, activation=named)

    def add(self, other: "ActivationCounts") -> None:
        """As if all that ``other`` has seen, on the same device, had been seen here as well."""
        if other._highest_C is not None:
            self._raise_to(other._highest_C)
        self._entries += other._entries
        self._saturated += other._saturated
        self._flat += other._flat

    @property
    def units(self) -> int | None:
        """How many units `dead_fraction` is a share of."""
        return None if self._highest_C is None else self._highest_C.numel()

    @property
    def dead_fraction(self) -> float | None:
        """Share of units that never fire; None where the function has no such units."""
        if self._highest_C is None or self.activation.floor is None:
            return None
        return float((self._highest_C <= self.activation.floor).cpu().double().mean())

    @property
    def saturated_fraction(self) -> float | None:
        """Share of entries whose derivative is below 10 % of its largest (tanh: beyond ±0.95)."""
        return self._saturated / self._entries if self._entries else None

    @property
    def flat_fraction(self) -> float | None:
        """Share of entries whose derivative is below 1e-7."""
        return self._flat / self._entries if self._entries else None
