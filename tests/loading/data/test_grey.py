"""Images with one channel for models that take one, and pixels beyond 8 bits with their range."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import curvcli
from curvcli.errors import DataError
from curvcli.loading.data.images import _open, prepare_pixels
from curvcli.loading.models.library import RAW, LibraryTransform

Image = pytest.importorskip("PIL.Image")

NETS = """
import torch
from torch import nn

def conv(channels=1):
    return nn.Sequential(nn.Conv2d(channels, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 4 * 5, 2))

def dense(channels=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 6 * 7, 2))

def lazy():
    return nn.Sequential(nn.LazyConv2d(2, 3), nn.Flatten(), nn.LazyLinear(2))

def pooled():
    return nn.Sequential(nn.AdaptiveAvgPool3d((1, 4, 4)), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def stored(kind: str) -> np.ndarray:
    """Two images of 6 × 7 in two classes; what was written."""
    draw = np.random.default_rng(0)
    pixels = {
        "L": lambda: draw.integers(0, 256, (2, 6, 7)).astype("uint8"),
        "I;16": lambda: draw.integers(300, 65536, (2, 6, 7)).astype("uint16"),
        "F": lambda: draw.normal(0, 300, (2, 6, 7)).astype("float32"),
    }[kind]()
    for number, image in enumerate(pixels):
        Path(f"d/{number}").mkdir(parents=True)
        Image.fromarray(image).save(f"d/{number}/i.tiff")
    return pixels


def inputs(model: str, **arguments: int) -> tuple[Tensor, list[str]]:
    subject = curvcli.load(
        model=f"nets.py:{model}", model_args=arguments, data="d", loss="cross_entropy"
    )
    (batch,) = subject.objective.batches
    return batch.data[0][0], subject.notes


@pytest.mark.parametrize("model", ["conv", "dense"])
@pytest.mark.parametrize(("kind", "scale"), [("L", 255), ("I;16", 65535), ("F", 1)])
def test_images_have_the_channels_that_the_model_takes(
    place: Path, model: str, kind: str, scale: int
) -> None:
    """One channel: the pixels over the largest of their type, floats as they are. Three: the same three times."""
    right = torch.from_numpy(stored(kind) / scale).float()[:, None]
    one, notes = inputs(model)
    torch.testing.assert_close(one, right)
    assert any("one channel" in note for note in notes)
    three, notes = inputs(model, channels=3)
    torch.testing.assert_close(three, right.expand(-1, 3, -1, -1))
    assert not any("one channel" in note for note in notes)


@pytest.mark.parametrize("model", ["lazy", "pooled"])
def test_models_that_take_either_get_colours(place: Path, model: str) -> None:
    stored("L")
    assert inputs(model)[0].shape == (2, 3, 6, 7)


def test_colours_become_grey_by_their_luminance(place: Path) -> None:
    """ITU-R 601: 0.299 R + 0.587 G + 0.114 B, to the rounding of Pillow's 8 bits."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, 3)).astype("uint8")
    Path("d/0").mkdir(parents=True)
    Image.fromarray(pixels).save("d/0/i.png")
    found, _ = inputs("conv")
    right = torch.from_numpy(pixels @ np.array([0.299, 0.587, 0.114])).float() / 255
    torch.testing.assert_close(found[0, 0], right, atol=1 / 255, rtol=0)


def test_libraries_get_sixteen_bits_as_eight(place: Path) -> None:
    """Not cut off at 255: p / 257, rounded. Floats have no range to be scaled by, and are refused."""
    pixels = stored("I;16")[0]
    seen: list[Tensor] = []

    def apply(picture: object) -> Tensor:
        seen.append(torch.from_numpy(np.asarray(picture).copy()))
        return seen[-1]

    _open(Path("d/0/i.tiff"), LibraryTransform(apply))
    right = torch.from_numpy(pixels / 257).round().byte()[..., None].expand(-1, -1, 3)
    assert torch.equal(seen[0], right)
    Image.fromarray(np.ones((4, 4), "float32")).save("f.tiff")
    with pytest.raises(DataError, match="pixels that are floats"):
        _open(Path("f.tiff"), LibraryTransform(apply))


def test_unknown_kinds_of_pixels_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (4, 4)).save("i.png")
    opened = Image.open(io.BytesIO(Path("i.png").read_bytes()))
    opened._mode = "BGR;24"
    monkeypatch.setattr(Image, "open", lambda _: opened)
    with pytest.raises(DataError, match="pixels of the kind 'BGR;24'"):
        _open(Path("i.png"), RAW)


@pytest.mark.parametrize("grey", [False, True])
def test_grey_pixels_for_a_directory_of_one_channel(grey: bool) -> None:
    """(p / 255 − mean) / std: with the colours' statistics three times, or with their average once."""
    processor = SimpleNamespace(
        size={"height": 4, "width": 4},
        image_mean=(0.1, 0.2, 0.6),
        image_std=(0.2, 0.3, 0.4),
        resample=2,
    )
    directory = SimpleNamespace(task="images", image_processor=lambda: processor)
    pixels = torch.arange(32, dtype=torch.uint8).view(2, 4, 4)
    notes: list[str] = []
    found = prepare_pixels({"x": pixels}, None, {}, directory, (), notes, lambda _: grey)["x"]  # type: ignore[arg-type]
    unit = pixels[:, None].double() / 255
    if grey:
        right = (unit - 0.3) / 0.3
    else:
        right = torch.cat([(unit - m) / s for m, s in ((0.1, 0.2), (0.2, 0.3), (0.6, 0.4))], 1)
    torch.testing.assert_close(found, right.float())
