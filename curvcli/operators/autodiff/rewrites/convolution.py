"""Convolutions whose derivatives compute no more than what the present pass asks for.

Autograd's derivative of a convolution's backward computes the part that belongs to the weight also where nothing
leads there: a third of the work of every layer behind the one whose block of the Hessian is multiplied with.

Notation: y = x ∗ w + b; ``g`` = ∂L/∂y; ``u``, ``v``, ``c`` = the vectors that a product sends into ∂L/∂x, ∂L/∂w, ∂L/∂b.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from curvcli.machine.private import will_run


class Geometry(NamedTuple):
    """What a convolution is beside its tensors, one number for each spatial axis."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """x ∗ w + b."""
        y: Tensor = torch.ops.aten.convolution(
            x, w, b, self.stride, self.padding, self.dilation, False, [0] * len(self.stride), self.groups
        )  # fmt: skip
        return y

    def backward(
        self, g: Tensor, x: Tensor, w: Tensor, of_x: bool, of_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Transposed Jacobian products in x and in w; only the shape of the one not asked for is used."""
        if not (of_x or of_w):
            return None, None
        gx, gw, _ = torch.ops.aten.convolution_backward(
            g, x, w, None, self.stride, self.padding, self.dilation, False,
            [0] * len(self.stride), self.groups, [of_x, of_w, False],
        )  # fmt: skip
        return gx, gw


def _wanted(ctx: Any) -> list[bool]:
    """Which inputs the pass that runs now needs a gradient for; more than that where it cannot be told."""
    wanted = list(ctx.needs_input_grad)
    for i, (node, _) in enumerate(ctx.next_functions):
        if wanted[i] and node is not None:
            wanted[i] = will_run(node)
    return wanted


class _Convolution(Function):
    """y = x ∗ w + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> Any:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return geometry.forward(x, w, b)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        x, w = ctx.saved_tensors
        of_x, of_w, of_b, _ = _wanted(ctx)
        if torch.is_grad_enabled():
            gx, gw = _ConvolutionBackward.apply(g, x, w, ctx.geometry, of_x, of_w)
        else:
            gx, gw = ctx.geometry.backward(g, x, w, of_x, of_w)
        return gx, gw, g.sum((0, *range(2, g.dim()))) if of_b else None, None


class _ConvolutionBackward(Function):
    """(∂L/∂x, ∂L/∂w), linear in g and in w or x."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, w: Tensor, geometry: Geometry, of_x: bool, of_w: bool
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x, w)
        ctx.geometry = geometry
        return geometry.backward(g, x, w, of_x, of_w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *vectors: Any) -> Any:
        u, v = vectors
        g, x, w = ctx.saved_tensors
        of_g, of_x, of_w, *_ = _wanted(ctx)
        gg = gx = gw = None
        if u is not None:
            gg = ctx.geometry.forward(u, w) if of_g else None
            gw = ctx.geometry.backward(g, u, w, False, of_w)[1]
        if v is not None:
            if of_g:
                other = ctx.geometry.forward(x, v)
                gg = other if gg is None else gg + other
            gx = ctx.geometry.backward(g, x, v, of_x, False)[0]
        return gg, gx, gw, None, None, None


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Any:
    """As `torch.nn.functional.conv2d`, for any number of spatial axes; NotImplemented for unusual arguments."""
    x, w = input, weight
    axes = w.dim() - 2
    if isinstance(padding, str) or x.dim() != w.dim():
        return NotImplemented

    def each(value: int | tuple[int, ...]) -> list[int]:
        return (
            [value] * axes
            if isinstance(value, int)
            else list(value) * (axes if len(value) == 1 else 1)
        )

    if axes == 2 and x.device.type == "cpu" and x.dtype == torch.float32:
        # What a kernel of the CPU reads and writes without reordering; what follows keeps it.
        x = x.contiguous(memory_format=torch.channels_last)
    # A leaf would not tell whether it is wanted; a view of it does.
    w = w.view_as(w)
    geometry = Geometry(each(stride), each(padding), each(dilation), groups)
    y: Tensor = _Convolution.apply(x, w, bias, geometry)
    return y


# What a network may only ask of a tensor in the layout that it expects.
_VIEWS = (torch.Tensor.view, torch.Tensor.view_as)


def allow_views(func: Any, args: tuple[Any, ...]) -> None:
    """Before ``func`` takes a view of a convolution's output: put it in the order that torch would have given it.

    The tensor itself, not a copy: what the network changes through the view has to be seen in the tensor too.
    """
    if func in _VIEWS and _has_channels_last(args[0]):
        args[0].data = args[0].detach().contiguous()


def _has_channels_last(x: Any) -> bool:
    """Whether a convolution gave this tensor the layout of images with the channels last."""
    return (
        isinstance(x, Tensor)
        and x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )
