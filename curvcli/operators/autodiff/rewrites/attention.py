"""Attention with its second derivative written out.

Autograd composes the derivative of attention's backward from passes over the weights of all heads, each of which goes
through memory. Here a few heads at a time go through all steps, so that their weights stay in a core's cache.

Notation: x = s q kᵀ + mask, y = softmax(x) over the last axis, o = y v; ``g`` = ∂L/∂o;
``u_a`` = the vector that a product sends into ∂L/∂a. Axes: heads of all samples, queries or keys, width.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from curvcli.machine.device import block

# Weights at a time on a CPU: a megabyte in float32, of which four or five arrays are in use at once.
_PIECE = 1 << 18


def _pieces(weights: Tensor) -> Iterator[slice]:
    """Some heads at a time."""
    each = max(1, weights.shape[1] * weights.shape[2])
    step = max(1, block(weights.device, _PIECE) // each)
    for start in range(0, len(weights), step):
        yield slice(start, start + step)


class _Attention(Function):
    """o = softmax(s q kᵀ + mask) v; rows of which everything is masked are zero."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        y = q.new_empty(len(q), q.shape[1], k.shape[1])
        o = q.new_empty(len(q), q.shape[1], v.shape[2])
        for i in _pieces(y):
            if mask is None:
                torch.softmax(torch.bmm(q[i] * scale, k[i].mT), -1, out=y[i])
            else:
                masked = mask if mask.dim() == 2 else mask[i]
                x = torch.baddbmm(masked, q[i], k[i].mT, alpha=scale)
                y[i] = torch.ops.aten._safe_softmax(x, -1)
            torch.bmm(y[i], v[i], out=o[i])
        ctx.save_for_backward(q, k, v, y)
        ctx.scale = scale
        return o

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        g = gradients[0].contiguous()
        q, k, v, y = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_AttentionBackward.apply(g, q, k, v, y, ctx.scale), None, None
        to_q, to_k, to_v = (torch.empty_like(a) for a in (q, k, v))
        for i in _pieces(y):
            p = torch.bmm(g[i], v[i].mT)
            x = torch.ops.aten._softmax_backward_data(p, y[i], -1, y.dtype)
            _of_weights(x, y[i], g[i], q[i], k[i], ctx.scale, to_q[i], to_k[i], to_v[i])
        return to_q, to_k, to_v, None, None


def _of_weights(
    x: Tensor,
    y: Tensor,
    g: Tensor,
    q: Tensor,
    k: Tensor,
    s: float,
    to_q: Tensor,
    to_k: Tensor,
    to_v: Tensor,
) -> None:
    """∂L/∂q = s X k, ∂L/∂k = s Xᵀ q and ∂L/∂v = yᵀ g into the last three, where X = ∂L/∂(s q kᵀ)."""
    torch.baddbmm(to_q, x, k, beta=0, alpha=s, out=to_q)
    torch.baddbmm(to_k, x.mT, q, beta=0, alpha=s, out=to_k)
    torch.bmm(y.mT, g, out=to_v)


class _AttentionBackward(Function):
    """∂L/∂v = yᵀ g, ∂L/∂q = s X k, ∂L/∂k = s Xᵀ q with X = y t, t = P − Σ P y, P = g vᵀ.

    In the direction (u_q, u_k, u_v), with ẋ = s (u_q kᵀ + q u_kᵀ), d = ẋ − Σ ẋ y and ẏ = y d: to g goes
    y u_v + ẏ v; to v ẏᵀ g; to y goes Y = d t + g u_vᵀ, but for a term that is the same in each row, which the
    derivative of softmax takes to zero; so with Z = y (Y − Σ Y y), to q goes s (X u_k + Z k), to k s (Xᵀ u_q + Zᵀ q).
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, scale: float
    ) -> Any:
        to_q, to_k, to_v, t = (torch.empty_like(a) for a in (q, k, v, y))
        for i in _pieces(y):
            p = torch.bmm(g[i], v[i].mT)
            x = p * y[i]
            torch.sub(p, x.sum(-1, keepdim=True), out=t[i])
            torch.mul(y[i], t[i], out=x)
            _of_weights(x, y[i], g[i], q[i], k[i], scale, to_q[i], to_k[i], to_v[i])
        ctx.save_for_backward(g, q, k, v, y, t)
        ctx.scale = scale
        return to_q, to_k, to_v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *vectors: Any) -> Any:
        s = ctx.scale
        to_g, to_q, to_k, to_v = (torch.empty_like(a) for a in ctx.saved_tensors[:4])
        contiguous = [u.contiguous() for u in vectors]
        for i in _pieces(ctx.saved_tensors[4]):
            g, q, k, v, y, t = (a[i] for a in ctx.saved_tensors)
            u_q, u_k, u_v = (u[i] for u in contiguous)
            d = torch.bmm(u_q, k.mT).baddbmm_(q, u_k.mT)  # ẋ / s
            work = d * y
            d.sub_(work.sum(-1, keepdim=True))
            tangent = torch.mul(d, y, out=work)  # ẏ / s
            torch.bmm(y, u_v, out=to_g[i]).baddbmm_(tangent, v, alpha=s)
            torch.baddbmm(to_v[i], tangent.mT, g, beta=0, alpha=s, out=to_v[i])
            d.mul_(t).baddbmm_(g, u_v.mT, beta=s)
            z = torch.ops.aten._softmax_backward_data(d, y, -1, y.dtype)
            x = torch.mul(y, t, out=work)
            torch.baddbmm(to_q[i], z, k, beta=0, alpha=s, out=to_q[i]).baddbmm_(x, u_k, alpha=s)
            torch.baddbmm(to_k[i], z.mT, q, beta=0, alpha=s, out=to_k[i])
            to_k[i].baddbmm_(x.mT, u_q, alpha=s)
        return to_g, to_q, to_k, to_v, None, None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`F.scaled_dot_product_attention` without dropout, for as many heads of keys as of queries."""
    lead, widths = query.shape[:-2], (query.shape[-1], key.shape[-1])
    if dropout_p or enable_gqa or query.dim() < 3 or widths[0] != widths[1]:
        return NotImplemented
    if not lead == key.shape[:-2] == value.shape[:-2] or key.shape[-2] != value.shape[-2]:
        return NotImplemented
    if attn_mask is not None and (attn_mask.requires_grad or is_causal):
        return NotImplemented
    queries, keys = query.shape[-2], key.shape[-2]
    mask = None
    if is_causal:
        mask = query.new_full((queries, keys), -math.inf).triu_(1)
    elif attn_mask is not None:
        mask = attn_mask
        if mask.dtype == torch.bool:
            mask = query.new_zeros(mask.shape).masked_fill_(~mask, -math.inf)
        if mask.shape != (queries, keys):
            mask = mask.expand(*lead, queries, keys).reshape(-1, queries, keys)
    q, k, v = (a.reshape(-1, *a.shape[-2:]) for a in (query, key, value))
    scale = 1 / math.sqrt(widths[0]) if scale is None else scale
    o: Tensor = _Attention.apply(q, k, v, mask, scale)
    return o.view(*lead, queries, value.shape[-1])
