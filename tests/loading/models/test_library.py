"""Networks of timm and torchvision come by name, with the preprocessing of their libraries.

Skipped where these cannot be imported beside the installed torch; a stand-in for timm is tested everywhere.
"""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import curvcli
from curvcli.errors import CurvError, DataError, ModelError
from curvcli.loading.models.library import build_from_library, library_transform
from tests.oracles.checkpoints import stored

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def need(library: str) -> Any:
    """The library; where it cannot be imported, the error is checked and the test skipped."""
    try:
        return __import__(library)
    except Exception as error:
        with pytest.raises(CurvError):
            build_from_library(f"{library}:resnet18", {})
        pytest.skip(f"{library} cannot be imported beside torch {torch.__version__}: {error}")


def picture(height: int, width: int, seed: int = 0) -> Any:
    from PIL import Image

    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def pillow_pixels(image: Any) -> torch.Tensor:
    x = torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0).float() / 255
    return (x - IMAGENET_MEAN) / IMAGENET_STD


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_networks_of_the_libraries(name: str) -> None:
    need(name.partition(":")[0])
    model = build_from_library(name, {})
    assert sum(p.numel() for p in model.parameters()) == 11_689_512


def test_torchvision_preprocessing_against_pillow() -> None:
    """Shorter side to 256, the longer one rounded down, the central 224 x 224 (torchvision's documentation)."""
    need("torchvision")
    from PIL import Image

    image = picture(300, 401)
    resized = image.resize((342, 256), Image.Resampling.BILINEAR)  # 256 * 401 / 300 = 342.2
    expected = pillow_pixels(resized.crop((59, 16, 59 + 224, 16 + 224)))
    found = library_transform("torchvision:resnet18", {}).apply(image)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_timm_preprocessing_against_pillow() -> None:
    """resnet18: crop_pct 0.95, so that the shorter side becomes floor(224 / 0.95) = 235, bicubic."""
    need("timm")
    from PIL import Image

    image = picture(300, 300)
    resized = image.resize((235, 235), Image.Resampling.BICUBIC)
    left = round((235 - 224) / 2)
    expected = pillow_pixels(resized.crop((left, left, left + 224, left + 224)))
    found = library_transform("timm:resnet18", {}).apply(image)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("timm:test_resnet", {"in_chans": 1}, (1, 160, 160)),
        ("timm:test_vit", {"img_size": 96}, (3, 96, 96)),
        ("torchvision:vit_h_14", {}, (3, 224, 224)),
        ("torchvision:vit_b_16", {"image_size": 96}, (3, 96, 96)),
    ],
)
def test_arguments_change_what_the_network_takes(
    name: str, arguments: dict[str, Any], size: tuple[int, ...]
) -> None:
    need(name.partition(":")[0])
    transform = library_transform(name, arguments)
    image = picture(50, 70).convert("L" if transform.channels == 1 else "RGB")
    assert transform.apply(image).shape == size


def test_squashing_networks_see_the_whole_image() -> None:
    """A network whose crop_mode is squash gets the right-hand edge of a wide image, which a crop loses."""
    timm = need("timm")
    name = next(n for n in timm.list_models() if timm.get_pretrained_cfg(n).crop_mode == "squash")
    image = picture(100, 300)
    image.paste((255, 255, 255), (270, 0, 300, 100))
    found = library_transform(f"timm:{name}", {}).apply(image)
    assert (found[..., -2:] > found.amax() - 0.6).all()


def test_names_that_are_not_there_or_do_not_take_images() -> None:
    need("torchvision")
    with pytest.raises(ModelError, match="Did you mean 'resnet18'"):
        library_transform("torchvision:resnet18x", {})
    with pytest.raises(DataError, match="takes videos"):
        library_transform("torchvision:r3d_18", {})


def test_tags_of_timm() -> None:
    need("timm")
    assert isinstance(build_from_library("timm:test_vit.r160_in1k", {}), nn.Module)
    with pytest.raises(ModelError, match=r"Did you mean 'test_vit\.r160_in1k'"):
        build_from_library("timm:test_vit.r160_in1", {})


def test_pixels_give_what_a_folder_of_them_gives(tmp_path: Path) -> None:
    """Of another size and shape than the network's; grey ones too; targets are left alone."""
    need("timm")
    images = [picture(40, 60, seed) for seed in range(2)]
    for number, image in enumerate(images):
        folder = tmp_path / "images" / str(number)
        folder.mkdir(parents=True)
        image.save(folder / "x.png")
    arrays = np.stack([np.asarray(image) for image in images])
    y = np.arange(2, dtype=np.uint8)
    np.savez(tmp_path / "last.npz", x=arrays, y=y)
    np.savez(tmp_path / "first.npz", x=arrays.transpose(0, 3, 1, 2), y=y)
    np.savez(tmp_path / "grey.npz", x=np.asarray([i.convert("L") for i in images]), y=y)

    def load(data: str, **more: Any) -> Any:
        return curvcli.load(
            None,
            model="timm:test_vit",
            model_args={"num_classes": 3, **more},
            data=str(tmp_path / data),
            loss="cross_entropy",
        )

    (x,), _, _ = load("images").objective.batches[0].data
    for data in ("last.npz", "first.npz"):
        assert torch.equal(load(data).objective.batches[0].data[0][0], x)
    (grey,), _, _ = load("images", in_chans=1).objective.batches[0].data
    assert torch.equal(load("grey.npz", in_chans=1).objective.batches[0].data[0][0], grey)


class _Standin(types.ModuleType):
    """A module with timm's interface, for machines where timm cannot be imported (it needs torchvision)."""

    @staticmethod
    def list_models() -> list[str]:
        return ["small_net"]

    @staticmethod
    def create_model(name: str, pretrained: bool, num_classes: int = 3) -> nn.Module:
        assert not pretrained
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
        )

    @staticmethod
    def get_pretrained_cfg(name: str) -> Any:
        return types.SimpleNamespace(
            to_dict=lambda: {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.25,) * 3}
        )

    class data:
        @staticmethod
        def resolve_data_config(args: Any, pretrained_cfg: dict[str, Any]) -> dict[str, Any]:
            return pretrained_cfg

        @staticmethod
        def create_transform(input_size: Any, mean: Any, std: Any) -> Any:
            def transform(image: Any) -> Tensor:
                pixels = np.asarray(image.resize(input_size[1:])).reshape(*input_size[1:], -1)
                x = torch.from_numpy(pixels.copy()).movedim(-1, 0).float() / 255
                return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

            return transform


def test_a_stand_in_for_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in has timm's interface; timm itself is tested above, where it can be imported."""
    from PIL import Image

    monkeypatch.setitem(sys.modules, "timm", _Standin("timm"))
    model = build_from_library("timm:small_net", {"num_classes": 2})
    stored(model, tmp_path)
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        grey = np.full((20, 30, 3), 191, np.uint8)  # (191/255 − 0.5) / 0.25 = 0.996
        Image.fromarray(grey).save(tmp_path / "images" / name / "x.png")
    run = curvcli.load(
        str(tmp_path / "m.safetensors"),
        model="timm:small_net",
        model_args={"num_classes": 2},
        data=str(tmp_path / "images"),
        loss="cross_entropy",
    )
    (x,), _, y = run.objective.batches[0].data
    assert x.shape == (2, 3, 8, 8)
    assert y.tolist() == [0, 1]
    torch.testing.assert_close(x, torch.full_like(x, (191 / 255 - 0.5) / 0.25))
    with pytest.raises(ModelError, match="Did you mean 'small_net'"):
        build_from_library("timm:smal_net", {})
