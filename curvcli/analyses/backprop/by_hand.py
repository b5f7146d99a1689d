"""Weight gradients from what went into a layer and the gradient that came back, written out without autograd."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Convolution = nn.modules.conv._ConvNd
Transposed = nn.modules.conv._ConvTransposeNd


@dataclass
class Record:
    """What went into a layer, and the gradient that came back, for each call."""

    inputs: list[Tensor] = field(default_factory=list)
    deltas: list[Tensor] = field(default_factory=list)
    visits: list[int] = field(default_factory=list)
    """How often a gradient came back to each call."""
    transformed: bool = False
    """Whether it was called inside a transform of `torch.func` too, where nothing can be recorded."""


def recomputed(module: nn.Module, record: Record) -> list[tuple[nn.Parameter, Tensor]]:
    """(parameter, gradient by hand) of one layer, summed over its calls."""
    found: dict[int, tuple[nn.Parameter, Tensor]] = {}

    def add(parameter: Any, value: Tensor) -> None:
        if parameter is not None:
            known = found.get(id(parameter))
            found[id(parameter)] = (parameter, value if known is None else known[1] + value)

    for x, delta in zip(record.inputs, record.deltas, strict=True):
        if isinstance(module, nn.Linear):
            rows, deltas = x.reshape(-1, x.shape[-1]), delta.reshape(-1, delta.shape[-1])
            add(module.weight, deltas.T @ rows)
            add(module.bias, deltas.sum(0))
        elif isinstance(module, nn.Embedding):
            add(module.weight, _embedding(module, x, delta))
        elif isinstance(module, Transposed):
            add(module.weight, _correlate(delta, x, module, transposed=True))
            add(module.bias, _over_positions(delta))
        elif isinstance(module, Convolution):
            add(module.weight, _correlate(x, delta, module, transposed=False))
            add(module.bias, _over_positions(delta))
    return list(found.values())


def _embedding(module: nn.Embedding, tokens: Tensor, delta: Tensor) -> Tensor:
    """Σ of the output gradients of each token."""
    one_hot = F.one_hot(tokens.reshape(-1), module.num_embeddings).to(delta.dtype)
    if module.padding_idx is not None:
        one_hot[:, module.padding_idx] = 0
    return one_hot.T @ delta.reshape(-1, delta.shape[-1])


def _over_positions(delta: Tensor) -> Tensor:
    return delta.sum([d for d in range(delta.dim()) if d != 1])


def _correlate(wide: Tensor, narrow: Tensor, module: Any, transposed: bool) -> Tensor:
    """Σ over samples and positions of wide (shifted by each kernel offset) times narrow.

    For a convolution ``wide`` is the padded input and ``narrow`` the output gradient; for a transposed one the
    output gradient and the input change places.
    """
    dims = len(module.kernel_size)
    if wide.dim() == dims + 1:
        wide, narrow = wide[None], narrow[None]
    if transposed:
        wide = F.pad(wide, [p for d in reversed(range(dims)) for p in (module.padding[d],) * 2])
    else:
        pads = list(module._reversed_padding_repeated_twice)
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        wide = F.pad(wide, pads, mode=mode)
    weight = torch.zeros_like(module.weight)
    groups = module.groups
    wide_G = wide.unflatten(1, (groups, -1))
    narrow_G = narrow.unflatten(1, (groups, -1))
    letters = "xyz"[:dims]
    for offset in itertools.product(*(range(k) for k in module.kernel_size)):
        window = wide_G
        for d in range(dims):
            first = offset[d] * module.dilation[d]
            count = narrow.shape[2 + d]
            last = first + (count - 1) * module.stride[d] + 1
            window = window.movedim(3 + d, 0)[first : last : module.stride[d]].movedim(0, 3 + d)
        # weight: (out, in/groups, …) of a convolution, (in, out/groups, …) of a transposed one.
        product = torch.einsum(f"bgi{letters},bgo{letters}->goi", window, narrow_G)
        index: Any = (slice(None), slice(None), *offset)
        weight[index] = product.flatten(0, 1)
    return weight
