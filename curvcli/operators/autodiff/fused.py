"""Layers whose second derivative is cheap on a graph that is kept: GELU, SiLU, LayerNorm, BatchNorm, large linear ones.

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
from torch.overrides import TorchFunctionMode

from curvcli.operators.autodiff.convolution import allow_views, convolution
from curvcli.operators.autodiff.fused_attention import attention, softmax

# Entries of a linear layer's output from which on passes over it take longer than calling Python.
_LARGE = 1 << 20


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


class _Linear(Function):
    """y = x wᵀ + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Any:
        ctx.save_for_backward(x, w)
        return F.linear(x, w, b)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        x, w = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return _LinearBackward.apply(g, x, w, wanted)
        return _first_of_linear(g, x, w, wanted)


def _first_of_linear(
    g: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """g w, gᵀ x and Σ g."""
    of_x, of_w, of_b = wanted
    return (
        g @ w if of_x else None,
        _rows(g).T @ _rows(x) if of_w else None,
        _rows(g).sum(0) if of_b else None,
    )


class _LinearBackward(Function):
    """∂L/∂x = g w, ∂L/∂w = gᵀ x, ∂L/∂b = Σ g: what goes to g is added up within the products of matrices."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, ...]) -> Any:
        ctx.save_for_backward(g, x, w)
        ctx.set_materialize_grads(False)
        return _first_of_linear(g, x, w, wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *vectors: Any) -> Any:
        u_x, u_w, u_b = vectors
        g, x, w = ctx.saved_tensors
        g_RO, x_RI = _rows(g), _rows(x)
        to_x = to_w = to_g = None
        if u_w is not None:
            to_g = x_RI @ u_w.T if u_b is None else torch.addmm(u_b, x_RI, u_w.T)
            to_x = (g_RO @ u_w).view_as(x) if ctx.needs_input_grad[1] else None
        elif u_b is not None:
            to_g = u_b.repeat(len(g_RO), 1)
        if u_x is not None:
            u_RI = _rows(u_x)
            to_g = u_RI @ w.T if to_g is None else to_g.addmm_(u_RI, w.T)
            to_w = g_RO.T @ u_RI if ctx.needs_input_grad[2] else None
        return None if to_g is None else to_g.view_as(g), to_x, to_w, None


def _rows(a: Tensor) -> Tensor:
    """All axes but the last as one."""
    return a.reshape(-1, a.shape[-1])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """For large outputs: passes over small ones take less time than calling Python."""
    if weight.dim() != 2 or x.dim() < 2 or x.numel() // x.shape[-1] * len(weight) < _LARGE:
        return NotImplemented
    return _Linear.apply(x, weight, bias)


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    derivatives = _erf_gelu if approximate == "none" else _tanh_gelu
    y: Tensor = _Pointwise.apply(x, lambda x: F.gelu(x, approximate=approximate), derivatives)
    return y


def _silu_layer(x: Tensor, inplace: bool = False) -> Any:
    return NotImplemented if inplace else _Pointwise.apply(x, F.silu, _silu)


def _layer_norm(
    x: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    shape = tuple(normalized_shape)
    w = x.new_ones(shape) if weight is None else weight
    b = x.new_zeros(shape) if bias is None else bias
    y: Tensor = _LayerNorm.apply(x, w, b, eps)
    return y


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if training or running_mean is None or running_var is None:
        return NotImplemented
    w = torch.ones_like(running_mean) if weight is None else weight
    b = torch.zeros_like(running_mean) if bias is None else bias
    return _ChannelNorm.apply(x, running_mean, running_var, w, b, eps)


_LAYERS: dict[Any, Callable[..., Any]] = {
    F.gelu: _gelu,
    F.silu: _silu_layer,
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    F.scaled_dot_product_attention: attention,
    F.softmax: softmax,
    torch.softmax: softmax,
    Tensor.softmax: softmax,
    torch.conv1d: convolution,
    torch.conv2d: convolution,
    torch.conv3d: convolution,
}


class FusedLayers(TorchFunctionMode):
    """While active, the layers of this module are evaluated by their fused forms where gradients are taken."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` or its fused form."""
        kwargs = kwargs or {}
        allow_views(func, args)
        fused = _LAYERS.get(func)
        if fused is not None and torch.is_grad_enabled() and _plain((*args, *kwargs.values())):
            result = fused(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)


def _plain(arguments: tuple[Any, ...]) -> bool:
    """Whether these are ordinary tensors of one floating-point type, outside function transforms and autocast."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    return (
        all(type(t) in (Tensor, torch.nn.Parameter, torch.nn.Buffer) for t in tensors)
        and tensors[0].is_floating_point()
        and len({t.dtype for t in tensors if t.dtype != torch.bool}) == 1
        and not torch.is_autocast_enabled(tensors[0].device.type)
        and torch._C._functorch.peek_interpreter_stack() is None
    )
