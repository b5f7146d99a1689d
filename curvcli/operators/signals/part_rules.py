"""How torch's functions use their parameters: the gradient of each by part, from input and gradient of the output.

Shapes: ``P`` parts, ``N`` samples of a part, ``C`` channels.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvcli.operators.recurrent.cells import is_recurrent_cell
from curvcli.operators.signals.part_gradients import PartGradients, Use


def can_be_apart(model: nn.Module) -> bool:
    """Whether no module of the model is known to use its weights out of sight."""
    return not any(
        isinstance(m, nn.RNNBase | nn.MultiheadAttention | torch.jit.ScriptModule)
        or is_recurrent_cell(m)
        for m in model.modules()
    )


def _linear(
    seen: PartGradients, output: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Use | None:
    def rule(x: Tensor, g: Tensor) -> list[Tensor]:
        g = g.reshape(len(g), -1, g.shape[-1])
        found = [g.mT @ x.reshape(len(x), -1, x.shape[-1])]
        return found if bias is None else [*found, g.sum(1)]

    return seen.of(x, weight, bias, rule)


def _addmm(
    seen: PartGradients, output: Tensor, bias: Tensor, x: Tensor, weight: Tensor
) -> Use | None:
    """A linear layer whose weight is stored the other way round."""

    def rule(x: Tensor, g: Tensor) -> list[Tensor]:
        return [x.mT @ g, g.sum(1)]

    return seen.of(x, weight, bias, rule) if bias.dim() == 1 else None


def _convolution(
    seen: PartGradients,
    output: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Use | None:
    axes = weight.dim() - 2
    if isinstance(padding, str) or x.dim() != weight.dim():
        return None
    stride, padding, dilation = (
        [v] * axes if isinstance(v, int) else list(v) * (axes // len(v))
        for v in (stride, padding, dilation)
    )
    sizes = None if bias is None else list(bias.shape)
    fixed = weight.detach()

    def rule(x: Tensor, g: Tensor) -> list[Tensor]:
        found = [
            torch.ops.aten.convolution_backward(
                g_N, x_N, fixed, sizes, stride, padding, dilation, False, [0] * axes, groups,
                [False, True, bias is not None],
            )[1:]
            for x_N, g_N in zip(x, g, strict=True)
        ]  # fmt: skip
        return [torch.stack(same) for same in zip(*found, strict=True) if same[0] is not None]

    return seen.of(x, weight, bias, rule)


def _embedding(
    seen: PartGradients,
    output: Tensor,
    ids: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Use | None:
    known = seen.weight(weight)
    if known is None or max_norm is not None or scale_grad_by_freq or sparse:
        return None
    rows, width = weight.shape

    def sums(ids: Tensor, g: Tensor) -> Tensor:
        """Rows of g (P, …, width) added up by part and id."""
        p = len(g)
        if padding_idx is not None:
            g = g.masked_fill((ids == padding_idx % rows)[..., None], 0.0)
        offsets = torch.arange(p, device=ids.device).mul_(rows).view(p, *[1] * (ids.dim() - 1))
        found = g.new_zeros(p * rows, width)
        found.index_add_(0, (ids + offsets).reshape(-1), g.reshape(-1, width))
        return found.view(p, rows, width)

    if seen.by_sample(ids):
        return seen.of(ids, weight, None, lambda x, g: [sums(x, g)])
    fixed = ids.detach().clone()
    seen.derived(output, known, lambda g: sums(fixed.expand(len(g), *fixed.shape), g))
    return None


def _layer_norm(
    seen: PartGradients,
    output: Tensor,
    x: Tensor,
    shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Use | None:
    kept = [shape] if isinstance(shape, int) else list(shape)

    def rule(x: Tensor, g: Tensor) -> list[Tensor]:
        p = len(g)
        x, g = x.reshape(p, -1, *kept), g.reshape(p, -1, *kept)
        return [(F.layer_norm(x, kept, eps=eps) * g).sum(1), g.sum(1)]

    return seen.of(x, weight, bias, rule)


def _rms_norm(
    seen: PartGradients,
    output: Tensor,
    x: Tensor,
    shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Use | None:
    kept = list(shape)

    def rule(x: Tensor, g: Tensor) -> list[Tensor]:
        p = len(g)
        return [
            (F.rms_norm(x.reshape(p, -1, *kept), kept, eps=eps) * g.reshape(p, -1, *kept)).sum(1)
        ]

    return seen.of(x, weight, None, rule)


def _batch_norm(
    seen: PartGradients,
    output: Tensor,
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Use | None:
    if training or mean is None or variance is None:
        return None
    mean_C, scale_C = mean.clone(), (variance + eps).rsqrt()

    def rule(x: Tensor, g: Tensor) -> list[Tensor]:
        centred = x - mean_C.view(-1, *[1] * (x.dim() - 3))
        return [_by_channel(centred.mul_(g)) * scale_C, _by_channel(g)]

    return seen.of(x, weight, bias, rule)


def _group_norm(
    seen: PartGradients,
    output: Tensor,
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Use | None:
    def rule(x: Tensor, g: Tensor) -> list[Tensor]:
        whitened = F.group_norm(x.flatten(0, 1), groups, eps=eps).view_as(x)
        return [_by_channel(whitened * g), _by_channel(g)]

    return seen.of(x, weight, bias, rule)


def _by_channel(values: Tensor) -> Tensor:
    """Sum over samples and positions of (P, N, C, …), shape (P, C)."""
    return values.sum([i for i in range(values.dim()) if i not in (0, 2)])


def _add(seen: PartGradients, output: Tensor, a: Any, b: Any, *, alpha: Any = 1) -> Use | None:
    if alpha != 1:
        return None
    return _broadcast(seen, output, a, b, False)


def _multiply(seen: PartGradients, output: Tensor, a: Any, b: Any) -> Use | None:
    return _broadcast(seen, output, a, b, True)


def _broadcast(seen: PartGradients, output: Tensor, a: Any, b: Any, product: bool) -> Use | None:
    """A weight beside a tensor with samples."""
    weight, other = (a, b) if seen.weight(a) is not None else (b, a)
    known = seen.weight(weight)
    same_shape = isinstance(other, Tensor) and other.shape == output.shape
    if known is None or not same_shape or seen.weight(other) is not None:
        return None
    shape = list(weight.shape)
    padded = [1] * (output.dim() - len(shape)) + shape
    if padded[:1] != [1]:
        return None

    def rule(x: Tensor, g: Tensor) -> list[Tensor]:
        sums = (g * x if product else g).sum(1)
        axes = [i + 1 for i, n in enumerate(padded[1:]) if n == 1]
        return [(sums.sum(axes) if axes else sums).reshape(len(g), *shape)]

    return seen.of(other if product else output, weight, None, rule)


def _index(seen: PartGradients, output: Tensor, weight: Any, index: Any) -> None:
    """Slices of a weight."""
    known = seen.weight(weight)
    every = index if isinstance(index, tuple) else (index,)
    plain = all(i is None or i is Ellipsis or isinstance(i, int | slice) for i in every)
    if known is None or not plain:
        return
    shape = weight.shape

    def lift(g: Tensor) -> Tensor:
        found = g.new_zeros(len(g), *shape)
        found[(slice(None), *every)] = g
        return found

    seen.derived(output, known, lift)


SEEN: dict[Any, Callable[..., Use | None]] = {
    F.linear: _linear, torch.addmm: _addmm,
    F.conv1d: _convolution, F.conv2d: _convolution, F.conv3d: _convolution,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm, F.rms_norm: _rms_norm,
    F.batch_norm: _batch_norm, F.group_norm: _group_norm,
    torch.Tensor.add: _add, torch.add: _add,
    torch.Tensor.mul: _multiply, torch.mul: _multiply,
    torch.Tensor.__getitem__: _index,
}  # fmt: skip
"""Functions whose use of a parameter is understood."""
