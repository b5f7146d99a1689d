"""Which functions of torch are rewritten while a graph is built for products, and why each of them is.

Every rewrite computes what torch's own function computes, to rounding; only its derivatives are written out. None of
them can be differentiated more often than products need: a network that takes derivatives itself goes without.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from curvcli.machine.private import transformed
from curvcli.operators.autodiff.rewrites.attention import attention
from curvcli.operators.autodiff.rewrites.convolution import allow_views, convolution
from curvcli.operators.autodiff.rewrites.norms import batch_norm, layer_norm
from curvcli.operators.autodiff.rewrites.pointwise import gelu, silu


class Rewrite(NamedTuple):
    """One rewritten function."""

    name: str
    functions: tuple[Any, ...]
    """Of torch, that it stands for."""
    form: Callable[..., Any]
    """Takes the same arguments by the same names; NotImplemented where it does not know them."""
    why: str


REWRITES = (
    Rewrite("gelu", (F.gelu,), gelu, "a product reads two stored factors, not ten operations"),
    Rewrite("silu", (F.silu,), silu, "the same"),
    Rewrite("layer_norm", (F.layer_norm,), layer_norm, "one pass over each row, not dozens"),
    Rewrite("batch_norm", (F.batch_norm,), batch_norm, "a multiply-add with fixed statistics"),
    Rewrite(
        "attention",
        (F.scaled_dot_product_attention,),
        attention,
        "a few heads at a time stay in the cache",
    ),
    Rewrite(
        "convolution",
        (torch.conv1d, torch.conv2d, torch.conv3d),
        convolution,
        "no gradient by weights that nobody asked for",
    ),
)
_FORMS = {function: rewrite.form for rewrite in REWRITES for function in rewrite.functions}


class Rewritten(TorchFunctionMode):
    """While active, the functions of `REWRITES` are called in their other form where gradients are taken."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` or its other form."""
        kwargs = kwargs or {}
        allow_views(func, args)
        form = _FORMS.get(func)
        if form is not None and torch.is_grad_enabled() and _ordinary((*args, *kwargs.values())):
            result = form(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)


def _ordinary(arguments: tuple[Any, ...]) -> bool:
    """Whether these are ordinary tensors of one floating-point type, outside function transforms and autocast."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    return (
        all(type(t) in (Tensor, torch.nn.Parameter, torch.nn.Buffer) for t in tensors)
        and tensors[0].is_floating_point()
        and len({t.dtype for t in tensors if t.dtype != torch.bool}) == 1
        and not torch.is_autocast_enabled(tensors[0].device.type)
        and not transformed()
    )
