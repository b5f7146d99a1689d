"""Folders of images, and pixels in ``.npz`` files -> what the model takes, by its own preprocessing."""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from curvcli.errors import CurvError, DataError, UsageError
from curvcli.files import check_regular
from curvcli.loading.models.huggingface import Directory
from curvcli.loading.models.library import (
    RAW,
    LibraryTransform,
    Preprocessing,
    is_library,
    library_transform,
    normalise,
)
from curvcli.machine.memory import check_fits, not_of_memory

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
_TABLES = {".npz", ".npy", ".csv", ".parquet"}
PIXELS = 100_000_000
"""Pixels of one image; beyond, it is refused before it is decoded."""
BATCH = 32
# Pillow's names of pixels with 16 bits, of floats, and of those that convert to colours without a loss.
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_FLOAT = "F"
_KNOWN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "LAB")
_DEEPEST = 65535
_MODES = {1: "L", 3: "RGB"}

TakesGrey = Callable[[tuple[int, int, int]], bool]
"""(samples, height, width) -> whether the model takes one channel, and not three."""


def preprocessing(
    model: str | None, arguments: Mapping[str, Any], directory: Directory | None
) -> Preprocessing | LibraryTransform:
    """How the model wants its images; unknown for a model of the user's own."""
    if directory is not None:
        return _from_processor(directory.image_processor())
    if model is not None and is_library(model):
        return library_transform(model, arguments)
    return RAW


def image_batches(
    folder: Path,
    how: Preprocessing | LibraryTransform,
    batch_size: int | None,
    notes: list[str],
    memory: int | None = None,
    takes_grey: TakesGrey = lambda _: False,
) -> Iterator[dict[str, Any]]:
    """Batches with ``x`` (N, C, H, W) and the number of the class as ``y``.

    Args:
        folder: one subfolder of images for each class; classes are numbered in alphabetical order.
        how: the model's preprocessing.
        batch_size: images of a batch; default 32.
        notes: told what was found.
        memory: bytes that the process may use in all.
        takes_grey: whether the model takes one channel; images are colours otherwise.

    Raises:
        DataError: no images, images of different sizes where none is known, or a damaged one.
        UsageError: Pillow is not installed.
    """
    if folder.is_symlink() and not folder.exists():
        raise DataError(f"there is no folder {str(folder)!r}", "check the path")
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [
        (path, number)
        for number, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise DataError(
            f"the folder {str(folder)!r} holds no images in subfolders",
            f"make one subfolder of images for each class{_or_a_file(folder)}",
        )
    notes.append(f"{len(files)} images of {len(classes)} classes, numbered in alphabetical order")
    waiting = iter(files)
    while chunk := list(itertools.islice(waiting, batch_size or BATCH)):
        needed = sum(_bytes(path, how) for path, _ in chunk)
        check_fits(
            2 * needed, memory, f"a batch of {len(chunk)} images"
        )  # by themselves, and stacked
        pixels = [_open(path, how) for path, _ in chunk]
        height, width = pixels[0].shape[1:]
        if (
            chunk[0] == files[0]
            and isinstance(how, Preprocessing)
            and takes_grey((len(chunk), height, width))
        ):
            how = how.grey()
            notes.append("images are read as grey: the model takes one channel")
            pixels = [_open(path, how) for path, _ in chunk]
        sizes = {tuple(p.shape) for p in pixels}
        if len(sizes) > 1:
            raise DataError(
                f"the images have different sizes, and nothing says which the model wants: {sorted(sizes)[:3]}",
                "use a classifier of timm:NAME or torchvision:NAME or a Hugging Face directory, or make them of "
                "one size",
            )
        yield {
            "x": normalise(torch.stack(pixels), how)
            if isinstance(how, Preprocessing)
            else torch.stack(pixels),
            "y": torch.tensor([number for _, number in chunk]),
        }


def _or_a_file(folder: Path) -> str:
    """The first file of arrays or a table in the folder, which may have been meant."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in _TABLES)
    return f", or name a file: --data {files[0]}" if files else ""


def prepare_pixels(
    tensors: dict[str, Any],
    model: str | None,
    arguments: Mapping[str, Any],
    directory: Directory | None,
    targets: Collection[str],
    notes: list[str],
    takes_grey: TakesGrey = lambda _: False,
) -> dict[str, Any]:
    """Pixels (uint8; N, H, W or N, H, W, C or N, C, H, W) become inputs, where the preprocessing is known.

    Args:
        tensors: the data's, by name.
        model: ``--model``.
        arguments: its ``--model-arg``.
        directory: the Hugging Face directory, if there is one.
        targets: names that are not inputs (a map of classes has the type and shape of a grey image).
        notes: told what was prepared.
        takes_grey: whether the model takes one channel.
    """
    own = directory is not None and directory.task == "images"
    if not own and not (model is not None and is_library(model)):
        return tensors
    found = {n: t for n, t in tensors.items() if n not in targets and _is_pixels(t)}
    if not found:
        return tensors
    how = preprocessing(model, arguments, directory)
    if isinstance(how, Preprocessing):
        rows = _rows(next(iter(found.values())))
        height, width = how.size or rows.shape[2:]
        if takes_grey((len(rows), height, width)):
            how = how.grey()
    notes.append(f"{', '.join(found)}: pixels, prepared as the model's own preprocessing does")
    return {n: _prepare(t, how) if n in found else t for n, t in tensors.items()}


def _is_pixels(x: Any) -> bool:
    if not isinstance(x, Tensor) or x.dtype != torch.uint8:
        return False
    return x.dim() == 3 or (x.dim() == 4 and (x.shape[-1] in (1, 3) or x.shape[1] in (1, 3)))


def _rows(pixels: Tensor) -> Tensor:
    """Pixels as (N, C, H, W)."""
    pixels = pixels.unsqueeze(-1) if pixels.dim() == 3 else pixels
    return pixels.movedim(-1, 1) if pixels.shape[-1] in (1, 3) else pixels


def _prepare(pixels: Tensor, how: Preprocessing | LibraryTransform) -> Tensor:
    rows = _rows(pixels)
    if isinstance(how, Preprocessing):
        return _tensor(rows, how)
    Image = _pillow()
    pictures = [
        Image.fromarray(p.squeeze(-1).numpy() if p.shape[-1] == 1 else p.numpy())
        for p in rows.movedim(1, -1).contiguous()
    ]
    return torch.stack([_transform(picture, how) for picture in pictures])


def _transform(picture: Any, how: LibraryTransform) -> Tensor:
    if how.channels not in _MODES:
        raise DataError(
            f"the model takes {how.channels} channels, and images have 1 or 3",
            "give inputs by --data FILE.npz (floats)",
        )
    return how.apply(picture.convert(_MODES[how.channels]))


def _tensor(rows: Tensor, how: Preprocessing) -> Tensor:
    x = rows.float() / 255
    if x.shape[1] == 1 and len(how.mean) == 3:
        x = x.expand(-1, 3, -1, -1)
    if how.size is not None and tuple(x.shape[-2:]) != how.size:
        mode = how.interpolation if how.interpolation in ("bilinear", "bicubic") else "bilinear"
        x = F.interpolate(x, how.size, mode=mode, antialias=True).clamp(0, 1)
    return normalise(x, how)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UsageError("images need Pillow", "pip install 'curvcli[vision]'") from None
    return Image


def _deep(image: Any, path: Path) -> Tensor:
    """A grey image beyond 8 bits as (H, W): 16 bits from 0 to 1, floats as they are.

    Pillow's conversion to colours would cut both off at 255.
    """
    pixels = np.asarray(image).astype(np.float32)
    if image.mode == _FLOAT:
        return torch.from_numpy(pixels)
    if pixels.min() < 0 or pixels.max() > _DEEPEST:
        raise DataError(
            f"{path.name} has pixels from {pixels.min():g} to {pixels.max():g}, outside 16 bits",
            "give pixels as floats in a .npz file",
        )
    return torch.from_numpy(pixels / _DEEPEST)


def _with_eight_bits(image: Any, path: Path) -> Any:
    """The image with 8 bits a pixel, as libraries take it, its range kept."""
    if image.mode == _FLOAT:
        raise DataError(
            f"{path.name} has pixels that are floats, and the library prepares 8 bits a pixel",
            "give inputs by --data FILE.npz (floats)",
        )
    if image.mode not in _DEEP:
        return image
    return _pillow().fromarray((_deep(image, path) * 255).round().byte().numpy())


def _bytes(path: Path, how: Preprocessing | LibraryTransform) -> int:
    """What an image takes as floats; one that cannot be read takes nothing, and is refused when it is decoded."""
    check_regular(path, DataError, "image")
    try:
        with _pillow().open(path) as image:
            width, height = image.size
    except CurvError:
        raise
    except Exception as error:  # decoders raise anything on damaged files
        not_of_memory(error)
        return 0
    rows, columns = (how.size if isinstance(how, Preprocessing) else None) or (height, width)
    return 3 * 4 * rows * columns + 3 * int(width) * int(height)


def _open(path: Path, how: Preprocessing | LibraryTransform) -> Tensor:
    """An image as (C, H, W): prepared by the library, or from 0 to 1, resized and cut."""
    Image = _pillow()
    check_regular(path, DataError, "image")
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > PIXELS:
                raise DataError(
                    f"{path.name} has {width * height} pixels, more than {PIXELS}", "scale it down"
                )
            if image.mode not in (*_KNOWN, *_DEEP, _FLOAT):
                raise DataError(
                    f"{path.name} has pixels of the kind {image.mode!r}, which would lose their range",
                    "save it with 8 or 16 bits a channel, or give pixels as floats in a .npz file",
                )
            if isinstance(how, LibraryTransform):
                return _transform(_with_eight_bits(image, path), how)
            if image.mode in (*_DEEP, _FLOAT):
                return _resized(_deep(image, path), how)
            picture = image.convert(_MODES[how.channels])
        if how.size is not None:
            picture = _fit(picture, how)
        x = torch.from_numpy(np.asarray(picture).copy()).float() / 255
        return x[None] if x.dim() == 2 else x.movedim(-1, 0)
    except CurvError:
        raise
    except Exception as error:  # decoders raise anything on damaged files
        not_of_memory(error)
        raise DataError(
            f"{path.name} is not a readable image: {' '.join(str(error).split())[:160]}",
            "drop it from the folder",
        ) from None


def _resized(grey: Tensor, how: Preprocessing) -> Tensor:
    """A grey image (H, W) in the model's channels and size; nothing but means of pixels, so the range stays."""
    x = grey[None, None]
    if how.size is not None and tuple(grey.shape) != how.size:
        x = F.interpolate(x, how.size, mode="bilinear", antialias=True)
    return x[0].expand(how.channels, -1, -1).clone()


def _fit(picture: Any, how: Preprocessing) -> Any:
    from PIL import Image

    assert how.size is not None
    height, width = how.size
    filters = {"bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}
    chosen = filters.get(how.interpolation, Image.Resampling.BILINEAR)
    if how.resize is None:
        return picture.resize((width, height), chosen)
    scale = how.resize / min(picture.size)
    whole = tuple(max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize(whole, chosen)
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _from_processor(processor: Any) -> Preprocessing:
    """The settings of a Hugging Face image processor."""

    def side(value: Any, *names: str) -> Any:
        found = value if isinstance(value, dict) else getattr(value, "__dict__", {})
        return next((found[n] for n in names if found.get(n)), None)

    resize, crop = processor.size, getattr(processor, "crop_size", None)
    cut = getattr(processor, "do_center_crop", False) and crop is not None
    size = crop if cut else resize
    height = side(size, "height", "shortest_edge")
    width = side(size, "width", "shortest_edge")
    if height is None or width is None:
        raise DataError(
            "the directory's image processor names no size", "give inputs by --data FILE.npz"
        )
    names = {0: "nearest", 2: "bilinear", 3: "bicubic"}
    normal = getattr(processor, "do_normalize", True)
    return Preprocessing(
        (height, width),
        side(resize, "shortest_edge", "height") if cut else None,
        tuple(processor.image_mean) if normal else (0.0,),
        tuple(processor.image_std) if normal else (1.0,),
        names.get(int(getattr(processor, "resample", None) or 2), "bilinear"),
    )
