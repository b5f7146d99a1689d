"""Products of vectors with the transposed Jacobian of what autograd has recorded.

`torch.autograd.grad` imports a computer algebra system to compare the shapes of vectors that it is given, which takes a
quarter of a second in every process. Here the vectors are put in by a node at the end of the graph.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from curvcli.machine.private import quiet_batching


def pullback(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    vectors: Sequence[Tensor],
    *,
    retain_graph: bool = True,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """Σ_i (∂outputs_i/∂inputs)ᵀ vectors_i, shaped like the inputs; zero where they are not connected.

    Args:
        outputs: each with a graph.
        inputs: what is differentiated by.
        vectors: shaped like the outputs.
        retain_graph: keep the graph for another product.
        create_graph: make products differentiable, in the vectors too.

    Raises:
        ValueError: a vector is not shaped like its output.
    """
    _check_shapes(outputs, [v.shape for v in vectors])
    with torch.enable_grad():
        end = _End.apply(_Sent(vectors), *outputs)
    found = torch.autograd.grad(
        end,
        inputs,
        retain_graph=retain_graph,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    # A TorchScript program's own backward leaves a graph on what it returns, in torch 2.8 and earlier.
    return found if create_graph else tuple(part.detach() for part in found)


def pullbacks(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The same for several vectors, which are along the first axes of ``vectors`` and of what is returned.

    The graph is kept.

    Raises:
        ValueError: vectors are not shaped like their output.
        RuntimeError: an operation cannot be batched; others only warn.
    """
    _check_shapes(outputs, [v.shape[1:] for v in vectors])
    sent = _Sent(())
    with torch.enable_grad():
        end = _End.apply(sent, *outputs)

    def one(*vector: Tensor) -> tuple[Tensor, ...]:
        sent.vectors = vector
        return torch.autograd.grad(
            end, inputs, retain_graph=True, allow_unused=True, materialize_grads=True
        )

    with quiet_batching():
        found: tuple[Tensor, ...] = torch.vmap(one)(*vectors)
    return found


class _Sent:
    """What the end of the graph sends into it."""

    def __init__(self, vectors: Sequence[Tensor]) -> None:
        self.vectors = vectors


class _End(Function):
    """A number whose gradients by the outputs are the vectors."""

    @staticmethod
    def forward(ctx: Any, sent: _Sent, *outputs: Tensor) -> Tensor:
        ctx.sent = sent
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, *ctx.sent.vectors


def _check_shapes(outputs: Sequence[Tensor], shapes: Sequence[torch.Size]) -> None:
    for output, shape in zip(outputs, shapes, strict=True):
        if output.shape != shape:
            raise ValueError(f"a vector of shape {tuple(shape)} for {tuple(output.shape)}")
