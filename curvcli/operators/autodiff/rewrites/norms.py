"""LayerNorm and BatchNorm with a second derivative that is cheap on a graph that is kept.

Autograd composes the derivative of these layers' backward from dozens of element-wise operations, each time it
is asked. What depends on the activations alone is the same in every product on a kept graph: here it is computed
once, when the graph is built. The functions are the same; only their first backward is written out.

Notation: y = f(x); ``g`` = ∂L/∂y, ``u`` = the vector that a product sends into ∂L/∂x.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class _LayerNorm(Function):
    """y = x̂ w + b with x̂ = (x − mean) r and r = 1/√(var + eps) over the last dimensions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, eps: float) -> Any:
        y, mean, r = torch.native_layer_norm(x, w.shape, w, b, eps)
        ctx.save_for_backward(x, w, b, mean, r)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        x, w, b, mean, r = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_LayerNormBackward.apply(g, x, w, mean, r), None
        native = torch.ops.aten.native_layer_norm_backward
        return *native(g.contiguous(), x, w.shape, mean, r, w, b, [True] * 3), None


class _LayerNormBackward(Function):
    """∂L/∂x = r P(g w), ∂L/∂w = Σ g x̂, ∂L/∂b = Σ g, where P a = a − m(a) − x̂ m(x̂ a) and m is the mean.

    With dr = −r² m(x̂ dx) and dx̂ = r P dx, and P symmetric, the derivative of uᵀ r P(g w) with respect to x is
    −r² (m(u G) x̂ + m(x̂ g w) P u + m(x̂ u) G), where G = P(g w).
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, mean: Tensor, r: Tensor) -> Any:
        g = g.contiguous()
        ctx.dims = tuple(range(x.dim() - w.dim(), x.dim()))
        ctx.rows = tuple(range(x.dim() - w.dim()))
        normal = (x - mean).mul_(r)
        weighted = g * w
        share = (weighted * normal).mean(ctx.dims, keepdim=True)
        projected = (weighted - weighted.mean(ctx.dims, keepdim=True)).addcmul_(
            normal, share, value=-1
        )
        to_x = projected * r
        ctx.save_for_backward(g, x, w, mean, r, normal, projected.mul_(-r * r), share.mul_(-r))
        return to_x, (g * normal).sum(ctx.rows), g.sum(ctx.rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *vectors: Any) -> Any:
        u, u_w, u_b = (vector.contiguous() for vector in vectors)
        g, x, w, mean, r, normal, curved, share = ctx.saved_tensors
        dims = ctx.dims

        def project(a: Tensor, weight: Tensor | None) -> Tensor:
            """r P (a weight)."""
            native = torch.ops.aten.native_layer_norm_backward
            out: Tensor = native(a, x, w.shape, mean, r, weight, None, [True, False, False])[0]
            return out

        to_weighted = project(u, None)
        # One buffer for all products: it stays in the cache.
        product = to_weighted * g
        to_w = product.sum(ctx.rows)
        to_x = project(g, u_w).addcmul_(to_weighted, share)
        torch.mul(u, curved, out=product)
        to_x.addcmul_(normal, product.mean(dims, keepdim=True))
        torch.mul(u, normal, out=product)
        to_x.addcmul_(curved, product.mean(dims, keepdim=True))
        to_g = torch.addcmul(u_b, normal, u_w, out=product).addcmul_(to_weighted, w)
        return to_g, to_x, to_w, None, None


class _ChannelNorm(Function):
    """BatchNorm with fixed statistics: y = (x − mean) r w + b for each channel, dimension 1."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, var: Tensor, w: Tensor, b: Tensor, eps: float
    ) -> Any:
        ctx.save_for_backward(x, w, mean, var)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, w, b, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        x, w, mean, var = ctx.saved_tensors
        if torch.is_grad_enabled():
            r = (var + ctx.eps).rsqrt()
            to_x, to_w, to_b = _ChannelNormBackward.apply(g, x, w, mean, r)
        else:
            native = torch.ops.aten.native_batch_norm_backward
            to_x, to_w, to_b = native(g, x, w, mean, var, None, None, False, ctx.eps, [True] * 3)
        return to_x, None, None, to_w, to_b, None


class _ChannelNormBackward(Function):
    """∂L/∂x = g r w, ∂L/∂w = Σ g x̂, ∂L/∂b = Σ g, where x̂ = (x − mean) r is linear in x."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, mean: Tensor, r: Tensor) -> Any:
        ctx.save_for_backward(g, x, w, mean, r)
        sums = _over_channels(g, x)
        to_b = _over_channels(g)
        return g * _channels(w * r, x), (sums - mean * to_b) * r, to_b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *vectors: Any) -> Any:
        u, u_w, u_b = vectors
        g, x, w, mean, r = ctx.saved_tensors
        scale = u_w * r
        to_g = torch.addcmul(_channels(u_b - scale * mean, x), u, _channels(w * r, x))
        to_g.addcmul_(x, _channels(scale, x))
        return to_g, g * _channels(scale, x), _over_channels(u, g) * r, None, None


def _channels(values_C: Tensor, like: Tensor) -> Tensor:
    """Values of channels, to be broadcast with (samples, channels, …)."""
    return values_C.view(-1, *[1] * (like.dim() - 2))


def _over_channels(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Σ a b over everything but the channels, shape (channels,)."""
    product = a if b is None else a * b
    return product.sum([d for d in range(a.dim()) if d != 1])


def layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    **_: Any,
) -> Tensor:
    """`F.layer_norm`."""
    shape = tuple(normalized_shape)
    w = input.new_ones(shape) if weight is None else weight
    b = input.new_zeros(shape) if bias is None else bias
    y: Tensor = _LayerNorm.apply(input, w, b, eps)
    return y


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """`F.batch_norm` with fixed statistics; NotImplemented for those of the batch."""
    if training or running_mean is None or running_var is None:
        return NotImplemented
    w = torch.ones_like(running_mean) if weight is None else weight
    b = torch.zeros_like(running_mean) if bias is None else bias
    return _ChannelNorm.apply(input, running_mean, running_var, w, b, eps)
