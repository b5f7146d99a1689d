"""What would lose content by being read is refused, or read as it is: complex weights, scaled float8, deep pixels."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import curvcli
from curvcli.analyses.shared.targets import step_of
from curvcli.errors import CheckpointError, DataError, ModelError
from curvcli.loading.checkpoints.formats import open_checkpoint
from curvcli.loading.checkpoints.moments import read_preconditioner
from curvcli.loading.data.tabular import read_table
from curvcli.loading.loss import loss_terms
from curvcli.loading.models.complex import cast_model, with_real_parameters
from curvcli.loading.models.model import load_weights
from curvcli.loading.references import resolve

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


def test_complex_weights_are_their_real_and_imaginary_parts(place: Path) -> None:
    """The same filter with a real parameter of shape (5, 2): same loss, same dense float64 Hessian."""
    torch.manual_seed(0)
    model = resolve("own.py:Filter", "--model", ModelError)()
    data = resolve("own.py:data", "--data", DataError)()
    (x, y), w = data[0], torch.view_as_real(model.w.detach()).double()

    def loss(parts: Tensor) -> Tensor:
        out = torch.fft.irfft(torch.fft.rfft(x.double()) * torch.view_as_complex(parts), n=8)
        mean: Tensor = (out - y.double()).square().mean()
        return mean

    truth = torch.linalg.eigvalsh(torch.func.hessian(loss)(w).reshape(10, 10))
    objective = make_objective_of(model, x, y)
    answer = curvcli.analyse("hessian", curvcli.Subject(objective=objective), top=3)
    assert answer.result.parameters == 10
    assert answer.result.loss == pytest.approx(float(loss(w)), rel=1e-6)
    # Residuals are those of float32.
    for pair, value in zip(answer.result.top, truth.flip(0).tolist(), strict=False):
        assert abs(pair.value - value) <= pair.residual


def make_objective_of(model: nn.Module, x: Tensor, y: Tensor) -> curvcli.Objective:
    with_real_parameters(model)
    return curvcli.make_objective(
        model, [curvcli.Batch(((x,), {}, y), len(x))], loss_terms("mse", {})
    )


def test_a_complex_parameter_that_is_shared_stays_one(place: Path) -> None:
    first, second = nn.Module(), nn.Module()
    first.w = second.w = nn.Parameter(torch.randn(3, dtype=torch.cfloat))
    both = nn.Sequential(first, second)
    with_real_parameters(both)
    assert sum(p.numel() for p in both.parameters()) == 6
    assert all(a is b for a, b in zip(first.parameters(), second.parameters(), strict=True))
    cast_model(both, torch.device("cpu"), torch.float64)
    assert second.get_submodule("parametrizations.w")().dtype == torch.complex128


def test_complex_buffers_keep_their_imaginary_parts(place: Path) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("phase", torch.tensor([1 + 2j]))
    cast_model(model, torch.device("cpu"), torch.float64)
    phase = model.get_buffer("phase")
    assert phase.dtype == torch.complex128
    assert phase.item() == 1 + 2j
    assert model.weight.dtype == torch.float64


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
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("weight_scale_inv", (1,)), ("weight_scale", ()), ("weight_scale", (300, 1)),
        ("weight_scale", (300,)), ("weight_scale_inv", (3, 2)),
    ],
)  # fmt: skip
def test_float8_is_multiplied_by_its_scales(
    place: Path, name: str, shape: tuple[int, ...], partial: bool
) -> None:
    """One scale for all, for each row, or for each block of 128 × 128 of which the last is cut off."""
    scale, weight = torch.rand(shape) + 0.5, torch.randn(300, 200).to(torch.float8_e4m3fn)
    right = weight.float()
    if shape == (3, 2):
        for i, j in ((i, j) for i in range(3) for j in range(2)):
            right[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)] *= scale[i, j]
    else:
        right = right * (scale[:, None] if shape == (300,) else scale)
    save_file({"weight": weight, name: scale, "bias": torch.zeros(300)}, "w.safetensors")
    model = nn.Linear(200, 300)
    notes = load_weights(model, open_checkpoint(Path("w.safetensors")), partial)
    # The same product of two numbers in float32.
    assert torch.equal(model.weight, right)
    assert any("float8" in note for note in notes)


def test_float8_with_scales_of_another_kind_is_refused(place: Path) -> None:
    stored = {"weight": torch.randn(3, 4).to(torch.float8_e4m3fn), "bias": torch.zeros(3)}
    for scale, words in (
        ({"weight.scale": torch.ones(1)}, "scales 'weight.scale' are meant is not known"),
        ({"weight_scale": torch.ones(7)}, r"scales of shape \[7\]"),
    ):
        save_file(stored | scale, "w.safetensors")
        with pytest.raises(ModelError, match=words):
            load_weights(nn.Linear(4, 3), open_checkpoint(Path("w.safetensors")), True)


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
                read_preconditioner(Path("o.pt"), shapes, [], unsafe_pickle=False)
        else:
            assert not read_preconditioner(Path("o.pt"), shapes, [], unsafe_pickle=False).missing


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
