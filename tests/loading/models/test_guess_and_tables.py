"""Networks recognised from shapes, `init`, tables, and the networks of libraries."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import curvcli
from curvcli.errors import DataError, ModelError, UsageError
from curvcli.loading.checkpoints.formats import open_checkpoint
from curvcli.loading.data.tabular import read_table
from curvcli.loading.models.guess import build_auto, recognise
from curvcli.loading.models.library import build_from_library
from curvcli.loading.models.model import load_weights
from tests.conftest import SAMPLES


def stored(model: nn.Module, folder: Path) -> Path:
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "m.safetensors")
    return folder / "m.safetensors"


class Named(nn.Module):
    """A CNN whose names in alphabetical order are not the order of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 5, padding=2)
        self.bn2 = nn.BatchNorm2d(6)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.classifier(x.mean((2, 3)))
        return out


@pytest.mark.parametrize(
    ("model", "example", "kind"),
    [
        (nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), (4, 5), "MLP"),
        (nn.Sequential(*(m for i in range(12) for m in (nn.Linear(4 + i, 5 + i), nn.ReLU())), nn.Linear(16, 2)),
         (3, 4), "MLP"),
        (nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)), (4, 5), "MLP"),
        (nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, 3, bias=False)), (4, 5), "MLP"),
        (nn.ModuleDict({"z": nn.Linear(5, 7), "a": nn.Linear(7, 3)}), None, "MLP"),
        (Named(), (3, 2, 8, 8), "CNN"),
    ],
)  # fmt: skip
def test_plain_networks_are_rebuilt_exactly(
    model: nn.Module, example: tuple[int, ...] | None, kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    checkpoint = open_checkpoint(stored(model, tmp_path))
    guess = recognise(checkpoint)
    assert guess is not None
    assert guess.kind == kind
    built = build_auto(checkpoint, {})
    load_weights(built, checkpoint)
    assert set(built.state_dict()) == set(model.state_dict())
    if example is not None:
        x = torch.randn(example)
        torch.testing.assert_close(built.eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    "model",
    [
        nn.LSTM(3, 4),
        nn.Embedding(4, 4),
        nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)),
        nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4, False), "d": nn.PReLU(1)}),
        nn.TransformerEncoderLayer(8, 2),
        nn.Conv1d(2, 3, 3),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_not_guessed(model: nn.Module, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(stored(model, tmp_path))
    assert recognise(checkpoint) is None
    with pytest.raises(ModelError, match="not those of a plain MLP or CNN"):
        build_auto(checkpoint, {})


def test_init_writes_a_file_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = curvcli.analyse("init", curvcli.load(str(SAMPLES / "digits_mlp.safetensors"))).result
    assert result.recognised == "MLP 64 → 128 → 64 → 10"
    assert result.settings == {"model": "auto"}
    assert result.unknown == ["data", "loss"]
    text = (tmp_path / "digits_mlp.toml").read_text()
    assert "assumed" in text
    filled = text.replace('# data = "val.npz"', f'data = "{SAMPLES / "digits.npz"}"')
    filled = filled.replace('# loss = "cross_entropy"', 'loss = "cross_entropy"')
    (tmp_path / "digits_mlp.toml").write_text(filled)
    # The sample's activation is GELU, which no shape tells.
    run = curvcli.load("digits_mlp.toml", model_args={"activation": "gelu"})
    true = curvcli.load(str(SAMPLES / "digits_mlp.toml")).objective
    assert run.objective.loss == pytest.approx(true.loss, rel=1e-6)
    with pytest.raises(UsageError, match="exists"):
        curvcli.analyse("init", curvcli.load(str(SAMPLES / "digits_mlp.safetensors")))
    with pytest.raises(ModelError, match="Did you mean 'gelu'"):
        _ = curvcli.load("digits_mlp.toml", model_args={"activation": "gelo"}).objective


def test_init_says_what_it_does_not_know(tmp_path: Path) -> None:
    to = tmp_path / "t.toml"
    run = curvcli.load(str(SAMPLES / "digits_lstm.safetensors"))
    result = curvcli.analyse("init", run, to=str(to)).result
    assert result.recognised is None
    assert result.unknown == ["model", "data", "loss"]
    assert '# model = "models.py:Net"' in to.read_text()


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,kind\n1,2.5,cat\n3,4,dog\n5,-1e3,cat\n")
    notes: list[str] = []
    table = read_table(tmp_path / "t.csv", "kind", (), notes)
    assert table["x"].tolist() == [[1.0, 2.5], [3.0, 4.0], [5.0, -1000.0]]
    assert table["y"].tolist() == [0, 1, 0]
    assert "'cat' = 0" in notes[0]
    assert read_table(tmp_path / "t.csv", "kind", ["b"], [])["x"].shape == (3, 1)
    assert read_table(tmp_path / "t.csv", "b", ["a"], [])["y"].dtype == torch.float32
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    pq.write_table(pc.read_csv(tmp_path / "t.csv"), tmp_path / "t.parquet")
    again = read_table(tmp_path / "t.parquet", "kind", (), [])
    assert torch.equal(again["x"], table["x"])
    assert torch.equal(again["y"], table["y"])


@pytest.mark.parametrize(
    ("content", "target", "match"),
    [
        ("a,y\n1,0\n", "z", "no column 'z'"),
        ("a,b\n1,0\n", None, "--target-column|which column"),
        ("a,y\n,0\n", None, "empty in row 1"),
        ("a,y\nx,0\n", None, "not a number"),
        ("a,y\n1,0,3\n", None, "3 cells, the heading 2"),
        ("a,a,y\n1,0,3\n", None, "several columns"),
        ("a,y\n", None, "no rows"),
        ("", None, "no rows"),
        ("y\n1\n", None, "no column of inputs"),
    ],
)
def test_tables_that_do_not_work_say_where(
    content: str, target: str | None, match: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=match):
        read_table(tmp_path / "t.csv", target, (), [])


def test_a_table_as_data_of_a_guessed_network(tmp_path: Path) -> None:
    """The breast-cancer table of scikit-learn, and an MLP that no code was given for."""
    from sklearn.datasets import load_breast_cancer

    bunch: Any = load_breast_cancer()
    rows = [",".join([*(f"c{i}" for i in range(30)), "diagnosis"])]
    scaled = (bunch.data - bunch.data.mean(0)) / bunch.data.std(0)
    rows += [
        ",".join([*(f"{v:.6f}" for v in x), bunch.target_names[y]])
        for x, y in zip(scaled, bunch.target, strict=True)
    ]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    torch.manual_seed(0)
    stored(nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 2)), tmp_path)
    run = curvcli.load(
        str(tmp_path / "m.safetensors"),
        model="auto",
        data=str(tmp_path / "t.csv"),
        target_column="diagnosis",
        loss="cross_entropy",
    )
    result = curvcli.analyse("hessian", run, top=1, bottom=1).result
    assert result.status == "converged"
    assert run.objective.samples == 569


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
                import numpy as np

                pixels = np.asarray(image.resize(input_size[1:])).reshape(*input_size[1:], -1)
                x = torch.from_numpy(pixels.copy()).movedim(-1, 0).float() / 255
                return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

            return transform


def test_a_stand_in_for_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in has timm's interface; timm itself is tested below, where it can be imported."""
    import numpy as np
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
