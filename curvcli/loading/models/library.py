"""``timm:NAME`` and ``torchvision:NAME``: networks of these libraries, and how they want their images."""

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curvcli.errors import DataError, ModelError, UsageError, did_you_mean
from curvcli.machine.memory import not_of_memory

_LIBRARIES = ("timm", "torchvision")
_WITH_BACKBONE = (
    "fasterrcnn", "maskrcnn", "retinanet", "keypointrcnn", "fcos", "ssd", "deeplabv3", "fcn", "lraspp",
)  # fmt: skip


class Preprocessing(NamedTuple):
    """How an image becomes an input: shorter side to ``resize``, centre cut to ``size``, normalised."""

    size: tuple[int, int] | None
    """(height, width); None leaves images as they are."""
    resize: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    channels: int = 3

    def grey(self) -> "Preprocessing":
        """The same for one channel; of statistics of colours, the average."""
        means = (sum(v) / len(v) for v in (self.mean, self.std))
        mean, std = ((m,) for m in means)
        return self._replace(mean=mean, std=std, channels=1)


class LibraryTransform(NamedTuple):
    """The library's own preprocessing of one image, as it evaluates the network."""

    apply: Callable[[Any], Tensor]
    """A Pillow image -> (C, H, W)."""
    channels: int = 3


RAW = Preprocessing(None, None, (0.0,), (1.0,))
"""Pixels as numbers from 0 to 1."""


def is_library(reference: str) -> bool:
    """Whether ``--model`` names a network of one of the libraries."""
    return reference.partition(":")[0] in _LIBRARIES and ":" in reference


def build_from_library(reference: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network with random weights; nothing is downloaded.

    Raises:
        UsageError: the library is not installed, or cannot be imported.
        ModelError: it has no such network, or not with these arguments.
    """
    place, _, name = reference.partition(":")
    library = _import(place if place == "timm" else "torchvision.models")
    known = list(library.list_models())
    if place == "timm" and "." in name:  # NAME.TAG: one of the trainings of that network
        known = list(library.list_pretrained())
    if name not in known:
        raise ModelError(
            f"{place} has no network {name!r}.{did_you_mean(name, known)}",
            f"python -c 'import {library.__name__} as m; print(m.list_models())' lists them",
        )
    try:
        if place == "timm":
            model = library.create_model(name, pretrained=False, **arguments)
        else:
            # Detection and segmentation networks would download their backbone.
            offline = {"weights_backbone": None} if name.startswith(_WITH_BACKBONE) else {}
            model = library.get_model(name, weights=None, **{**offline, **arguments})
    except Exception as error:
        not_of_memory(error)
        raise ModelError(
            f"{reference} failed: {type(error).__name__}: {error}", "check --model-arg"
        ) from error
    assert isinstance(model, nn.Module)
    return model


def library_transform(reference: str, arguments: Mapping[str, Any]) -> LibraryTransform:
    """How the library evaluates that network, with its first (timm: the tag's or default) weights.

    Args:
        reference: ``timm:NAME`` or ``torchvision:NAME``.
        arguments: of the network; ``in_chans`` and ``img_size`` (timm) and ``image_size`` (torchvision's vision
            transformers) change what it takes.

    Raises:
        UsageError: the library is not installed, or cannot be imported.
        ModelError: it has no such network.
        DataError: the network does not take images.
    """
    place, _, name = reference.partition(":")
    if place == "timm":
        return _timm_transform(name, arguments)
    return LibraryTransform(_torchvision_transform(name, arguments))


def _timm_transform(name: str, arguments: Mapping[str, Any]) -> LibraryTransform:
    timm = _import("timm")
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise ModelError(f"timm has no network {name!r}.", "check its name and tag")
    wanted = timm.data.resolve_data_config({}, pretrained_cfg=config.to_dict())
    channels, height, width = wanted["input_size"]
    size = arguments.get("img_size") or (height, width)
    height, width = size if isinstance(size, tuple | list) else (size, size)
    asked = int(arguments.get("in_chans", channels))
    if asked == 1 and len(wanted["mean"]) > 1:
        # Only the statistics of colours are known: a grey image has their average.
        wanted.update({k: (sum(wanted[k]) / len(wanted[k]),) for k in ("mean", "std")})
    wanted["input_size"] = (asked, height, width)
    return LibraryTransform(timm.data.create_transform(**wanted), asked)


def _torchvision_transform(name: str, arguments: Mapping[str, Any]) -> Callable[[Any], Tensor]:
    models = _import("torchvision.models")
    try:
        presets = [weights.transforms() for weights in models.get_model_weights(name)]
    except ValueError:
        known = models.list_models()
        raise ModelError(
            f"torchvision has no network {name!r}.{did_you_mean(name, known)}", "check its name"
        ) from None
    kind = type(presets[0]).__name__
    if kind in ("VideoClassification", "OpticalFlow"):
        raise DataError(
            f"torchvision:{name} takes videos or pairs of images, not single images",
            "give its inputs by --data FILE.npz (floats) or module:attribute",
        )
    chosen: Callable[[Any], Tensor] = presets[0]
    if name.startswith("vit_"):
        # The only networks here of one fixed size; it is an argument, whatever size the weights had.
        size = int(arguments.get("image_size", 224))
        first = presets[0]
        same = [p for p in presets if p.crop_size == [size]]
        chosen = (
            same[0]
            if same
            else type(first)(
                crop_size=size,
                resize_size=round(size * first.resize_size[0] / first.crop_size[0]),
                interpolation=first.interpolation,
                mean=first.mean,
                std=first.std,
            )
        )
    return chosen


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"this needs {name}: {error}", "pip install 'curvcli[vision]'") from None
    except (
        Exception
    ) as error:  # a torchvision that was built for another torch fails in its own ways
        raise UsageError(
            f"{name} cannot be imported beside torch {torch.__version__}: {type(error).__name__}: {error}",
            "install the version that belongs to this torch",
        ) from None


def normalise(x: Tensor, how: Preprocessing) -> Tensor:
    """(x − mean) / std of pixels (N, C, H, W) from 0 to 1."""
    mean, std = (
        torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (how.mean, how.std)
    )
    return (x - mean) / std
