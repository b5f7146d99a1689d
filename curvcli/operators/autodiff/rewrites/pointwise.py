"""GELU and SiLU with a second derivative that is cheap on a graph that is kept.

Autograd composes the derivative of these layers' backward from dozens of element-wise operations, each time it
is asked. What depends on the activations alone is the same in every product on a kept graph: here it is computed
once, when the graph is built. The functions are the same; only their first backward is written out.

Notation: y = f(x); ``g`` = ∂L/∂y, ``u`` = the vector that a product sends into ∂L/∂x.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class _Pointwise(Function):
    """y = f(x), given (f', f'') as a function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor], derivatives: Any) -> Any:
        ctx.save_for_backward(x)
        ctx.derivatives, ctx.first = derivatives, None
        return function(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            with torch.no_grad():
                ctx.first, second = ctx.derivatives(x)
            return _PointwiseBackward.apply(g, x, ctx.first, second), None, None
        # Every product ends with an ordinary backward.
        first = ctx.derivatives(x)[0] if ctx.first is None else ctx.first
        return g * first, None, None


class _PointwiseBackward(Function):
    """∂L/∂x = g f'(x); its derivative needs f'(x) and g f''(x), which do not change."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, first: Tensor, second: Tensor) -> Any:
        ctx.save_for_backward(first, second.mul_(g))
        return g * first

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *vectors: Any) -> Any:
        (u,) = vectors
        first, curved = ctx.saved_tensors
        return u * first, u * curved, None, None


def _erf_gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """Φ(x) + x φ(x) and (2 − x²) φ(x)."""
    density = torch.exp(-0.5 * x * x).mul_(1 / math.sqrt(2 * math.pi))
    first = torch.erf(x * (1 / math.sqrt(2))).add_(1).mul_(0.5).addcmul_(x, density)
    return first, density.mul_(2 - x * x)


def _tanh_gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of x (1 + tanh s)/2 with s = √(2/π) (x + 0.044715 x³)."""
    c, k = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(c * (x + k * x**3))
    slope = c * (1 + 3 * k * x * x)
    tangent = (1 - t * t) * slope
    first = 0.5 * (1 + t) + 0.5 * x * tangent
    second = tangent + 0.5 * x * ((1 - t * t) * (6 * c * k * x) - 2 * t * tangent * slope)
    return first, second


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(x)
    bend = s * (1 - s)
    return s + x * bend, bend * (2 + x * (1 - 2 * s))


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """`F.gelu`."""
    derivatives = _erf_gelu if approximate == "none" else _tanh_gelu
    y: Tensor = _Pointwise.apply(input, lambda x: F.gelu(x, approximate=approximate), derivatives)
    return y


def silu(input: Tensor, inplace: bool = False) -> Any:
    """`F.silu`; NotImplemented where it works in place."""
    return NotImplemented if inplace else _Pointwise.apply(input, F.silu, _silu)
