"""What would lose content by being read is refused, or read as it is: complex weights, scaled float8, deep pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import curvcli
from curvcli.analyses.shared.targets import step_of
from curvcli.errors import CheckpointError, DataError, ModelError
from curvcli.loading.checkpoints.moments import read_preconditioner
from curvcli.loading.data.tabular import read_table

FILE = """
import torch
from torch import nn

class Filter(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(5, dtype=torch.cfloat))

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x) * self.w, n=8)

def data():
    return [(torch.randn(4, 8), torch.randn(4, 8))]

def softmax():
    return [torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 4.0]])]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(FILE)
    return tmp_path


def test_complex_weights_are_refused_with_the_way_out(place: Path) -> None:
    subject = curvcli.load(model="own.py:Filter", data="own.py:data", loss="mse")
    with pytest.raises(ModelError, match="complex tensors: 'w'"):
        curvcli.analyse("hessian", subject)


def test_a_model_without_parameters_has_a_jacobian(place: Path) -> None:
    """The softmax of two points: ‖diag(p) − p pᵀ‖_F."""
    subject = curvcli.load(model="torch.nn:Softmax", model_args={"dim": -1}, data="own.py:softmax")
    result = curvcli.analyse("jacobian", subject).result
    for sample, x in zip(result.samples, ([1.0, 2.0, 3.0], [0.5, -1.0, 4.0]), strict=True):
        p = torch.softmax(torch.tensor(x, dtype=torch.float64), 0)
        truth = float(torch.linalg.matrix_norm(torch.diag(p) - torch.outer(p, p)))
        # float32 softmax.
        assert sample.frobenius == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("partial", [False, True])
def test_float8_without_its_scales_is_refused(place: Path, partial: bool) -> None:
    weight = torch.randn(3, 4)
    scale = weight.abs().max() / 448
    stored = {
        "weight": (weight / scale).to(torch.float8_e4m3fn),
        "weight_scale_inv": scale.reshape(1), "bias": torch.zeros(3),
    }  # fmt: skip
    save_file(stored, "w.safetensors")
    np.savez("d.npz", x=np.ones((2, 4), "f"), y=np.ones((2, 3), "f"))
    settings: dict[str, Any] = {"allow_partial": True} if partial else {}
    subject = curvcli.load(
        "w.safetensors", model="torch.nn:Linear", model_args={"in_features": 4, "out_features": 3},
        data="d.npz", loss="mse", **settings,
    )  # fmt: skip
    with pytest.raises(ModelError, match="float8, with scales in 'weight_scale_inv'"):
        curvcli.analyse("gradients", subject)


def test_images_of_sixteen_bits_keep_their_range(place: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    from curvcli.loading.data.images import _open
    from curvcli.loading.models.library import RAW

    pixels = np.random.default_rng(0).integers(2000, 65536, (6, 5)).astype("uint16")
    image.fromarray(pixels).save("deep.png")
    found: Tensor = _open(Path("deep.png"), RAW)
    assert found.shape == (3, 6, 5)
    torch.testing.assert_close(found[1], torch.from_numpy(pixels / 65535).float())
    image.fromarray(np.ones((4, 4), "float32") * 300).save("float.tiff")
    with pytest.raises(DataError, match="pixels of the kind 'F'"):
        _open(Path("float.tiff"), RAW)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_gap_in_a_table_is_named_by_column_and_row(place: Path, value: str) -> None:
    lines = ["a,b,label", *(f"{i}.5,{i}.25,{i % 2}" for i in range(10))]
    lines[8] = f"7.5,{value},1"
    Path("d.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"the column 'b' is -?(nan|inf) in row 8"):
        read_table(Path("d.csv"), None, [], [])


def test_an_order_that_shapes_do_not_tell_is_refused(place: Path) -> None:
    """Layers of one shape in groups of their own, head first: two orders fit, and one is wrong."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    groups = [{"params": list(model[i].parameters()), "lr": 10.0**-i} for i in (2, 1, 0)]
    for given, refused in ((groups, True), (model.named_parameters(), False)):
        optimizer = torch.optim.Adam(given)
        model(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()
        torch.save(optimizer.state_dict(), "o.pt")
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        if refused:
            with pytest.raises(CheckpointError, match="cannot be told from their shapes"):
                read_preconditioner(Path("o.pt"), shapes, unsafe_pickle=False)
        else:
            assert not read_preconditioner(Path("o.pt"), shapes, unsafe_pickle=False).missing


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_100.pt", 100), ("epoch=03-val_loss=1.23.ckpt", 3), ("epoch=3-step=400.ckpt", 400),
        ("model_global_step1200.safetensors", 1200), ("checkpoint-500", 500), ("iter20.pth", 20),
        ("run7.pt", 7), ("loss0.23.pt", None), ("net_2024_11_26.pt", None), ("best.pt", None),
    ],
)  # fmt: skip
def test_a_step_is_read_by_known_words(name: str, step: int | None) -> None:
    assert step_of(name) == step
