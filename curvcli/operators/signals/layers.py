"""What a module is: a layer, a layer with weights, a container; and what it returns."""

from typing import Any

import torch
from torch import Tensor, nn


def is_leaf(module: nn.Module) -> bool:
    """Whether a module has no layers inside; parametrisations of its weights are none."""
    return all(name == "parametrizations" for name, _ in module.named_children())


def weight_matrices(module: nn.Module) -> list[Tensor]:
    """The module's own parameters with at least two axes (of parts that are not called, too)."""
    own: list[Tensor] = [p for p in module.parameters() if p.dim() >= 2]
    return own if is_leaf(module) or isinstance(module, nn.MultiheadAttention) else []


def has_weights(module: nn.Module) -> bool:
    return bool(weight_matrices(module))


def is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def normalises_channels_first(module: nn.LayerNorm | nn.RMSNorm, x: Tensor) -> bool:
    """Whether a norm with a forward of its own normalises the second axis (ConvNeXt's over channels)."""
    shape = tuple(module.normalized_shape)
    if len(shape) != 1 or x.dim() < 3:
        return False
    declared = getattr(module, "data_format", None)
    if declared is not None:
        return bool(declared == "channels_first")
    return x.shape[-1] != shape[0] and x.shape[1] == shape[0]


def norm_gain(module: nn.LayerNorm | nn.RMSNorm, x: Tensor) -> Tensor:
    """RMS(weight) times the mean of 1/σ: what the layer multiplies a gradient by, before projection."""
    rows = x.detach().float()
    if normalises_channels_first(module, x):
        rows = rows.movedim(1, -1)
    eps = module.eps if module.eps is not None else torch.finfo(x.dtype).eps
    if isinstance(module, nn.LayerNorm):
        # The kernel of the layer itself hands out 1/σ in a fraction of the time that a variance takes.
        gain = torch.native_layer_norm(rows, module.normalized_shape, None, None, eps)[2].mean()
    else:
        axes = tuple(range(-len(module.normalized_shape), 0))
        gain = (rows.square().mean(axes) + eps).rsqrt().mean()
    weight = module.weight
    return gain if weight is None else gain * weight.detach().float().square().mean().sqrt()


def replaced(output: Any, copies: dict[int, Tensor]) -> Any:
    """``output`` with some of its tensors exchanged, containers of the same types."""
    if not copies:
        return output
    if isinstance(output, Tensor):
        return copies.get(id(output), output)
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(replaced(v, copies) for v in output))
    if isinstance(output, tuple | list):
        return type(output)(replaced(v, copies) for v in output)
    if isinstance(output, dict):
        # A dict of a class of its own (a library's output) keeps the object and exchanges the values.
        for key, value in list(output.items()):
            output[key] = replaced(value, copies)
    return output


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises, by its name: libraries write their own RMSNorm and LayerNorm."""
    return "Norm" in type(module).__name__
