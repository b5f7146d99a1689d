"""Plain networks recognised from the names and shapes of their weights: multi-layer perceptrons and small CNNs.

Shapes tell widths and kernel sizes; they do not tell activations, strides, pooling or padding. What is assumed for
these is tried on the data (see `forms`), said, and can be set.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvcli.errors import ModelError, did_you_mean
from curvcli.loading.checkpoints.checkpoint import Checkpoint

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "gelu": F.gelu, "silu": F.silu, "elu": F.elu,
    "leaky_relu": F.leaky_relu, "identity": lambda x: x,
}  # fmt: skip
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")
_MAXIMUM = 200


class Layer(NamedTuple):
    """One layer with weights."""

    name: str
    kind: Literal["linear", "conv", "norm", "layernorm"]
    shape: tuple[int, ...]
    """Of the weight."""
    bias: bool
    stats: bool = False
    """Whether a norm has running statistics."""


class Guess(NamedTuple):
    """A chain of layers that the checkpoint fits."""

    kind: Literal["MLP", "CNN"]
    layers: list[Layer]
    inputs: int
    """Features, or channels."""
    outputs: int


class Form(NamedTuple):
    """What the shapes of weights do not tell."""

    activation: str = "relu"
    pool: int = 1
    """Factor of max-pooling after each convolution."""
    stride: int = 1
    """Of each convolution."""
    padding: str | int = "same"
    """Of each convolution: as much as keeps the size, or none."""

    def told(self, images: bool) -> str:
        """In words."""
        words = f"{self.activation} after each layer but the last"
        if images:
            pool = f"max-pooling by {self.pool}" if self.pool > 1 else "no max-pooling"
            padding = "padding that keeps the size" if self.padding == "same" else "no padding"
            words += f", {pool} after each convolution, stride {self.stride}, {padding}"
        return words


def recognise(checkpoint: Checkpoint) -> Guess | None:
    """The plain network that has these tensors; None if it is not plain."""
    shapes = {_PREFIXES.sub("", t.name): t.shape for t in checkpoint.tensors}
    if len(shapes) > _MAXIMUM:
        return None
    layers = _layers(shapes)
    if layers is None or not layers:
        return None
    ordered = _chain(sorted(layers, key=lambda layer: _natural(layer.name)))
    if ordered is None:
        return None
    convolutions = [x for x in ordered if x.kind == "conv"]
    last = ordered[-1]
    if last.kind != "linear" or 0 in last.shape:
        return None
    return Guess("CNN" if convolutions else "MLP", ordered, ordered[0].shape[1], int(last.shape[0]))


def build_auto(checkpoint: Checkpoint, arguments: Mapping[str, Any]) -> nn.Module:
    """The recognised network, not yet with its weights (loading them, strictly, is the test of the guess).

    Args:
        checkpoint: whose names and shapes are looked at.
        arguments: fields of `Form`.

    Raises:
        ModelError: it is not a plain MLP or CNN.
    """
    if checkpoint.program is not None:
        return checkpoint.program
    guess = recognise(checkpoint)
    if guess is None:
        raise ModelError(
            "the names and shapes in the checkpoint are not those of a plain MLP or CNN",
            "name the network by --model file.py:attribute",
        )
    return PlainNetwork(guess, _form(arguments))


def _form(arguments: Mapping[str, Any]) -> Form:
    """What the user has set, the rest as usual."""
    unknown = next((k for k in arguments if k not in Form._fields), None)
    if unknown is not None:
        raise ModelError(
            f"--model auto takes no argument {unknown!r}", f"known: {', '.join(Form._fields)}"
        )
    form = Form(**arguments)
    if form.activation not in ACTIVATIONS:
        raise ModelError(
            f"there is no activation {form.activation!r}.{did_you_mean(str(form.activation), ACTIVATIONS)}",
            f"known: {', '.join(ACTIVATIONS)}",
        )
    for name in ("pool", "stride"):
        factor = getattr(form, name)
        if not isinstance(factor, int) or not 1 <= factor <= 16:
            raise ModelError(
                f"{name} is {factor!r}, not a factor from 1 to 16", f"--model-arg {name}=2"
            )
    if form.padding not in ("same", 0):
        raise ModelError(f"padding is {form.padding!r}", "it is same or 0")
    return form


class PlainNetwork(nn.Module):
    """A chain of layers with an activation after each but the last.

    Before the first linear layer the image is pooled to the grid that the layer's width asks for. Flat images are taken
    as square.

    Args:
        guess: the layers.
        form: what their shapes do not tell; it can be changed afterwards.
    """

    def __init__(self, guess: Guess, form: Form) -> None:
        super().__init__()
        self._steps: list[tuple[str, str]] = []
        self.form = form
        self._grid = 0
        self.images = guess.kind == "CNN"
        self.has_form = sum(layer.kind in ("linear", "conv") for layer in guess.layers) > 1
        channels = guess.inputs
        self._channels = guess.inputs if self.images else 0
        for layer in guess.layers:
            if layer.kind == "conv":
                channels = layer.shape[0]
            elif layer.kind == "linear" and self.images and not self._grid:
                self._grid = round((layer.shape[1] / channels) ** 0.5)
            _place(self, layer.name, _module(layer, self.images and not self._grid))
            self._steps.append((layer.name, layer.kind))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of the last layer, without an activation."""
        active, pool = ACTIVATIONS[self.form.activation], self.form.pool
        if self._channels and x.dim() == 2:  # flat images, which are square as a rule
            side = round((x.shape[1] / self._channels) ** 0.5)
            x = x.view(-1, self._channels, side, side)
        flat = False
        for index, (name, kind) in enumerate(self._steps):
            if kind == "linear" and not flat:
                if self._grid:
                    x = F.adaptive_avg_pool2d(x, self._grid)
                x, flat = x.flatten(1), True
            module = self.get_submodule(name)
            if isinstance(module, nn.Conv2d):
                module.stride = (self.form.stride, self.form.stride)
                size = module.kernel_size[0] // 2 if self.form.padding == "same" else 0
                module.padding = (size, size)
            x = module(x)
            following = self._steps[index + 1][1] if index + 1 < len(self._steps) else None
            if following not in (None, "norm", "layernorm"):
                x = active(x)
                if pool > 1 and not flat:
                    x = F.max_pool2d(x, pool)
        return x


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> list[Layer] | None:
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        groups.setdefault(module, {})[leaf] = shape
    layers = []
    for module, own in groups.items():
        weight = own.get("weight")
        extra = own.keys() - {
            "weight",
            "bias",
            "running_mean",
            "running_var",
            "num_batches_tracked",
        }
        if weight is None or extra or not module or any(len(p) == 0 for p in module.split(".")):
            return None
        stats = "running_mean" in own
        if len(weight) == 2 and not stats:
            layers.append(Layer(module, "linear", weight, "bias" in own))
        elif len(weight) == 4 and not stats and weight[2] == weight[3] and weight[2] % 2 == 1:
            layers.append(Layer(module, "conv", weight, "bias" in own))
        elif len(weight) == 1 and "bias" in own:
            layers.append(Layer(module, "norm" if stats else "layernorm", weight, True, stats))
        else:
            return None
        if "bias" in own and own["bias"] != (weight[0],):
            return None
    return layers


def _chain(layers: list[Layer]) -> list[Layer] | None:
    """The layers in an order in which each takes what the one before gives; the order of names comes first."""
    for order in (layers, _interleaved(layers)):
        if _fits(order):
            return order
    if any(layer.kind != "linear" for layer in layers) or len(layers) > 12:
        return None
    # Names say nothing ("encoder", "head"): only one order of the shapes may fit.
    found = [o for o in _orders([], layers, 0) if _fits(o)]
    return found[0] if len(found) == 1 else None


def _interleaved(layers: list[Layer]) -> list[Layer]:
    """Convolutions before linear layers, and each norm after the layer with its number, or the next of its width."""
    order = [x for x in layers if x.kind == "conv"] + [x for x in layers if x.kind == "linear"]
    hosts: dict[str, Layer] = {}
    for norm in (x for x in layers if x.kind in ("norm", "layernorm")):
        free = [x for x in order if x.name not in hosts and x.shape[0] == norm.shape[0]]
        numbered = [x for x in free if _digits(x.name) == _digits(norm.name)]
        if not free:
            return []
        hosts[(numbered or free)[0].name] = norm
    return [x for layer in order for x in (layer, hosts.get(layer.name)) if x is not None]


def _digits(name: str) -> list[str]:
    return re.findall(r"\d+", name)


def _orders(before: list[Layer], rest: list[Layer], tried: int) -> list[list[Layer]]:
    if not rest:
        return [before]
    fitting = [x for x in rest if not before or x.shape[1] == before[-1].shape[0]]
    found: list[list[Layer]] = []
    for layer in fitting:
        found += _orders([*before, layer], [x for x in rest if x is not layer], tried)
        if len(found) > 1:
            break
    return found


def _fits(layers: list[Layer]) -> bool:
    width, flat = 0, not any(layer.kind == "conv" for layer in layers)
    for layer in layers:
        if layer.kind == "conv":
            if flat or (width and layer.shape[1] != width):
                return False
            width = layer.shape[0]
        elif layer.kind == "linear":
            if not flat:
                grid = round((layer.shape[1] / width) ** 0.5) if width else 0
                if grid < 1 or grid * grid * width != layer.shape[1]:
                    return False
                flat = True
            elif width and layer.shape[1] != width:
                return False
            width = layer.shape[0]
        elif not width or layer.shape[0] != width or (layer.kind == "layernorm" and not flat):
            return False
    return bool(layers) and layers[0].kind in ("linear", "conv")


def _module(layer: Layer, images: bool) -> nn.Module:
    if layer.kind == "linear":
        return nn.Linear(layer.shape[1], layer.shape[0], layer.bias)
    if layer.kind == "conv":
        size = layer.shape[2]
        return nn.Conv2d(layer.shape[1], layer.shape[0], size, bias=layer.bias)
    if layer.kind == "layernorm":
        return nn.LayerNorm(layer.shape[0])
    return (nn.BatchNorm2d if images else nn.BatchNorm1d)(layer.shape[0])


def _place(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module under a dotted name."""
    *parents, last = name.split(".")
    for part in parents:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        inner = root._modules[part]
        assert inner is not None
        root = inner
    root.add_module(last, module)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """``layers.10`` after ``layers.2``."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", name) if p]
