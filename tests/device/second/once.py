"""Kernels without some derivative: recurrent layers as cuDNN's, attention as the fused kernel."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from tests.device.second.memory import aten

_NOT_IN_EVALUATION = "cudnn RNN backward can only be called in training mode"
_RECURRENT_ONCE = (
    "the derivative for '_cudnn_rnn_backward' is not implemented. Double backwards is not supported for CuDNN RNNs "
    "due to limitations in the CuDNN API."
)
_ATTENTION_ONCE = (
    "derivative for aten::_scaled_dot_product_efficient_attention_backward is not implemented"
)


class _Once(Function):
    """A function as one node of the graph, with a first derivative at most."""

    @staticmethod
    def forward(ctx: Any, function: Any, never: str | None, once: str, *tensors: Tensor) -> Any:
        ctx.function, ctx.never, ctx.once = function, never, once
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if ctx.never is not None:
            raise RuntimeError(ctx.never)
        wanted = ctx.needs_input_grad[3:]
        given = (len(gradients), wanted, *gradients, *ctx.saved_tensors)
        return None, None, None, *_OnceBackward.apply(ctx.function, ctx.once, *given)


class _OnceBackward(Function):
    @staticmethod
    def forward(ctx: Any, function: Any, once: str, count: int, wanted: Any, *tensors: Any) -> Any:
        ctx.once = once
        with torch.enable_grad():
            inputs = zip(tensors[count:], wanted, strict=True)
            leaves = [t.detach().requires_grad_(w) for t, w in inputs]
            outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        used = [t for t in leaves if t.requires_grad]
        found = iter(torch.autograd.grad(outputs, used, tensors[:count], allow_unused=True))
        return tuple(next(found) if w else None for w in wanted)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(ctx.once)


def recurrent(op: Any, with_cell: bool) -> Callable[..., Any]:
    """`torch.lstm` and its like, as a single kernel while cuDNN is on."""

    def run(x: Tensor, state: Any, weights: list[Tensor], *options: Any) -> Any:
        if not torch.backends.cudnn.enabled:
            return op.decompose(x, state, weights, *options)
        states = list(state) if with_cell else [state]

        def function(x: Tensor, *rest: Tensor) -> Any:
            first = list(rest[: len(states)]) if with_cell else rest[0]
            return op.decompose(x, first, list(rest[len(states) :]), *options)

        # has_biases, num_layers, dropout, train, …
        never = None if options[3] else _NOT_IN_EVALUATION
        return _Once.apply(function, never, _RECURRENT_ONCE, x, *states, *weights)

    return run


def attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
    """`F.scaled_dot_product_attention`, as a single kernel unless only the one in parts is allowed."""

    def function(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return aten.scaled_dot_product_attention.default.decompose(q, k, v, *args, **kwargs)

    cuda = torch.backends.cuda
    fused = cuda.mem_efficient_sdp_enabled() or cuda.flash_sdp_enabled()
    return (
        _Once.apply(function, None, _ATTENTION_ONCE, q, k, v)
        if fused and q.dim() == 4
        else function(q, k, v)
    )
