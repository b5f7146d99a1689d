"""``timm:NAME`` and ``torchvision:NAME``: networks of these libraries, and how they want their images."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curvcli.errors import ModelError, UsageError, did_you_mean

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
        raise ModelError(
            f"{reference} failed: {type(error).__name__}: {error}", "check --model-arg"
        ) from error
    assert isinstance(model, nn.Module)
    return model


def library_preprocessing(reference: str) -> Preprocessing:
    """What the library's own weights of that network were evaluated with."""
    place, _, name = reference.partition(":")
    if place == "timm":
        config = _import("timm").get_pretrained_cfg(name)
        _, height, width = config.input_size
        return Preprocessing(
            (height, width),
            round(min(height, width) / config.crop_pct),
            tuple(config.mean),
            tuple(config.std),
            config.interpolation,
        )
    models = _import("torchvision.models")
    weights = models.get_model_weights(name)
    usual = next(iter(weights)).transforms()
    crop = usual.crop_size[0]
    return Preprocessing(
        (crop, crop),
        usual.resize_size[0],
        tuple(usual.mean),
        tuple(usual.std),
        usual.interpolation.value,
    )


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
