"""Data sources, named losses, and what an objective refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from curvcli.errors import CurvError, DataError, LossError, ModelError, NonFiniteError
from curvcli.loading.data.batches import arrange, as_batch, fingerprint, read_batches
from curvcli.loading.loss import LOSSES, loss_terms, objective_terms
from curvcli.objective.batch import Batch
from curvcli.objective.calls import main_output
from curvcli.objective.checks import make_objective as objective_of
from tests.conftest import MakeObjective

X, Y = (
    torch.randn(6, 4, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0, 1, 2, 0, 1, 2]),
)


def test_files_with_named_tensors(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X.numpy(), y=Y.numpy())
    save_file({"x": X, "y": Y}, tmp_path / "d.safetensors")
    torch.save({"x": X, "y": Y}, tmp_path / "d.pt")
    torch.save((X, Y), tmp_path / "tuple.pt")
    prints = set()
    for name in ("d.npz", "d.safetensors", "d.pt"):
        (raw,) = read_batches(str(tmp_path / name))
        assert torch.equal(raw["x"], X)
        prints.add(fingerprint([raw]))
        assert [len(b["y"]) for b in read_batches(str(tmp_path / name), batch_size=4)] == [4, 2]
        assert len(read_batches(str(tmp_path / name), batch_size=2, max_batches=2)) == 2
    assert len(prints) == 1
    ((first, second),) = read_batches(str(tmp_path / "tuple.pt"))
    assert torch.equal(first, X)
    assert torch.equal(second, Y)


SOURCES = """
import torch
from torch.utils.data import DataLoader, TensorDataset
x, y = torch.arange(20.).view(10, 2), torch.arange(10)
loader = DataLoader(TensorDataset(x, y), batch_size=4)
dataset = TensorDataset(x, y)
def batches():
    for i in range(3):
        yield {"x": x[i:i + 2], "y": y[i:i + 2]}
def tensors(): return x, y
def broken(): raise RuntimeError("disk is full")
empty = []
number = 3
class Graph: pass
graphs = [Graph(), Graph()]
"""


def test_module_attributes(tmp_path: Path) -> None:
    (tmp_path / "sources.py").write_text(SOURCES)
    at = f"{tmp_path}/sources.py:"
    assert [len(b[0]) for b in read_batches(at + "loader")] == [4, 4, 2]
    assert len(read_batches(at + "dataset", batch_size=5)) == 2
    assert [list(b) for b in read_batches(at + "batches")] == [["x", "y"]] * 3
    assert len(read_batches(at + "batches", batch_size=1)) == 6
    assert len(read_batches(at + "tensors")) == 1
    for name, match in [
        ("broken", "disk is full"),
        ("empty", "no batches"),
        ("number", "not something to iterate"),
        ("loder", "Did you mean 'loader'"),
    ]:
        with pytest.raises(DataError, match=match):
            read_batches(at + name)
    opaque = read_batches(at + "graphs")
    assert as_batch(opaque[0], opaque=True).size == 1
    with pytest.raises(DataError, match="a batch is a Graph"):
        arrange(opaque[0])


def test_batches_are_frozen(tmp_path: Path) -> None:
    (tmp_path / "frozen.py").write_text("import torch\nx = torch.ones(2, 2)\nb = [(x, x)]\n")
    read = read_batches(f"{tmp_path}/frozen.py:b")
    import frozen  # type: ignore[import-not-found]

    frozen.x.zero_()
    assert float(read[0][0].sum()) == 4.0


def test_arrangements() -> None:
    assert arrange({"x": 1, "y": 2}) == ((1,), {}, 2)
    assert arrange({"input_ids": 1, "attention_mask": 3, "labels": 2}) == (
        (),
        {"input_ids": 1, "attention_mask": 3},
        2,
    )
    assert arrange({"a": 1, "b": 2, "c": 3}, ["b"], "c") == ((2,), {}, 3)
    assert arrange({"a": 1, "b": 2, "c": 3}, ["b", "a"], "c") == ((), {"b": 2, "a": 1}, 3)
    assert arrange((1, 2, 3)) == ((1, 2), {}, 3)
    assert arrange([1]) == ((1,), {}, None)
    assert arrange(X)[2] is None
    with pytest.raises(DataError, match="Did you mean 'labels'"):
        arrange({"x": 1, "labels": 2}, target_key="labls")
    with pytest.raises(DataError, match="no input"):
        arrange({"y": 1})


def test_unreadable_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object))
    np.savez(tmp_path / "text.npz", x=np.array(["a"]))
    np.savez(tmp_path / "empty.npz", x=np.zeros((0, 3)), y=np.zeros(0))
    np.savez(tmp_path / "uneven.npz", x=np.zeros((4, 3)), y=np.zeros(3))
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04nonsense")
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    for name, match in [
        ("objects.npz", "object arrays are refused|Object arrays"),
        ("text.npz", "not numbers"),
        ("empty.npz", "is empty"),
        ("damaged.npz", "not a readable"),
        ("d.parquet", "not known"),
        ("none.npz", "there is no data file"),
    ]:
        with pytest.raises(DataError, match=match):
            read_batches(str(tmp_path / name))
    with pytest.raises(DataError, match="different numbers of samples"):
        read_batches(str(tmp_path / "uneven.npz"), batch_size=2)


def terms(name: str, out: Tensor, y: Tensor, **arguments: object) -> tuple[float, float]:
    total, count = loss_terms(name, arguments)(nn.Identity(), ((out,), {}, y))
    return float(total), count


def test_named_losses_are_torch_means_times_terms() -> None:
    """torch's own mean reductions are the oracle."""
    z, t = torch.randn(6, 3), torch.rand(6, 3)
    for name, mine, theirs in [
        ("cross_entropy", terms("cross_entropy", z, Y), F.cross_entropy(z, Y)),
        (
            "cross_entropy",
            terms("cross_entropy", z, Y, label_smoothing=0.1),
            F.cross_entropy(z, Y, label_smoothing=0.1),
        ),
        (
            "cross_entropy",
            terms("cross_entropy", z, Y, ignore_index=1),
            F.cross_entropy(z, Y, ignore_index=1),
        ),
        ("nll", terms("nll", z.log_softmax(1), Y), F.cross_entropy(z, Y)),
        ("mse", terms("mse", z, t), F.mse_loss(z, t)),
        ("l1", terms("l1", z, t), F.l1_loss(z, t)),
        ("huber", terms("huber", z, t, delta=0.5), F.huber_loss(z, t, delta=0.5)),
        (
            "bce_with_logits",
            terms("bce_with_logits", z, t),
            F.binary_cross_entropy_with_logits(z, t),
        ),
    ]:
        assert mine[0] / mine[1] == pytest.approx(float(theirs), rel=1e-6), name
    probabilities = t / t.sum(1, keepdim=True)
    soft = terms("cross_entropy", z, probabilities)
    assert soft[0] / soft[1] == pytest.approx(float(F.cross_entropy(z, probabilities)), rel=1e-6)


def test_sequences_in_both_layouts() -> None:
    z = torch.randn(2, 5, 3)
    y = torch.randint(0, 3, (2, 5))
    last, first = terms("cross_entropy", z, y), terms("cross_entropy", z.movedim(2, 1), y)
    assert last == pytest.approx(first)
    assert last[1] == 10


@pytest.mark.parametrize(
    ("name", "out", "y", "match"),
    [
        ("cross_entropy", torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 0, 0]), "run from 0 to 3, but the model has 3"),
        ("cross_entropy", torch.randn(6, 3), torch.tensor([0, 1, 2, -1, 0, 0]), "labels run from -1 to 2"),
        ("cross_entropy", torch.randn(6, 3), torch.rand(6), "needs integer labels"),
        ("cross_entropy", torch.randn(6, 3), torch.zeros(5).long(), r"outputs \[6, 3\] and targets \[5\]"),
        ("mse", torch.randn(6, 3), torch.randn(6), "of one shape"),
        ("mse", torch.randn(6, 1), torch.randn(5, 1), "of one shape"),
    ],
)  # fmt: skip
def test_targets_that_do_not_fit(name: str, out: Tensor, y: Tensor, match: str) -> None:
    with pytest.raises(DataError, match=match):
        terms(name, out, y)


def test_axes_of_length_one_are_no_obstacle_and_never_broadcast() -> None:
    z = torch.randn(6, 1)
    assert terms("mse", z, z[:, 0] + 1) == pytest.approx((6.0, 6.0))


def test_unknown_losses_and_arguments(tmp_path: Path) -> None:
    with pytest.raises(LossError, match="Did you mean 'cross_entropy'"):
        loss_terms("cross_entropi", {})
    with pytest.raises(LossError, match="does not take"):
        loss_terms("mse", {"ignore_index": 3})
    assert "output" in LOSSES
    (tmp_path / "lossfile.py").write_text(
        "import torch\ndef mean(o, y): return ((o - y) ** 2).mean()\n"
        "def rows(o, y): return ((o - y) ** 2).sum(1)\n"
        "def pair(o, y): return ((o - y) ** 2).sum(), 3\n"
        "def wrong(o, y): return 1.0\n"
        "def objective(model, batch): return model(batch['a']).sum()\n"
    )
    at = f"{tmp_path}/lossfile.py:"
    z, t = torch.randn(6, 3), torch.randn(6, 3)
    square = float(((z - t) ** 2).sum())
    assert terms(at + "mean", z, t) == pytest.approx((square / 3, 6))
    assert terms(at + "rows", z, t) == pytest.approx((square, 6))
    assert terms(at + "pair", z, t) == pytest.approx((square, 3))
    with pytest.raises(LossError, match="returned float, not a tensor"):
        terms(at + "wrong", z, t)
    total, count = objective_terms(at + "objective")(nn.Linear(2, 1), {"a": torch.ones(5, 2)})
    assert count == 1
    assert total.requires_grad


def test_outputs_in_containers() -> None:
    z = torch.randn(2, 3)

    class WithLogits:
        logits = z

    for output in (z, (z, None), [z], {"logits": z}, {"other": 3, "z": z}, WithLogits()):
        assert main_output(output) is z
    with pytest.raises(ModelError, match="no output tensor"):
        main_output("text")


def test_model_that_returns_its_loss() -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": F.cross_entropy(self.linear(x), labels)}

    model = WithLoss()
    total, count = loss_terms("output", {})(model, ((), {"x": X}, Y))
    assert count == 6
    assert float(total.detach()) / 6 == pytest.approx(
        float(F.cross_entropy(model.linear(X), Y).detach())
    )


def test_a_model_failing_inside_names_the_shapes(make_objective: MakeObjective) -> None:
    with pytest.raises(ModelError, match=r"failed on inputs \(float32\[6, 4\]\): RuntimeError"):
        make_objective(nn.Linear(5, 3), X, Y)


def test_nan_in_weights_data_and_loss(make_objective: MakeObjective) -> None:
    net = nn.Linear(4, 3)
    with torch.no_grad():
        net.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="weights contain NaN or Inf: 1 values in 'weight'"):
        make_objective(net, X, Y)
    with pytest.raises(NonFiniteError, match="the data contains NaN"):
        make_objective(nn.Linear(4, 3), X * float("inf"), Y)

    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.log = nn.Linear(4, 3), Logarithm()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.log(-self.first(x).abs())
            return out

    class Logarithm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.log()

    with pytest.raises(NonFiniteError, match="first in the output of 'log'"):
        make_objective(Log(), X, Y)


def test_a_random_model_is_named(make_objective: MakeObjective) -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    with pytest.raises(LossError, match="random modules: '1'"):
        make_objective(nn.Sequential(nn.Linear(4, 4), Noise(), nn.Linear(4, 3)), X, Y)
    # Dropout is off in eval mode, and in train mode too, with a note.
    objective = make_objective(
        nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), X, Y, train_mode=True
    )
    assert any("dropout stays off" in n for n in objective.notes)


def test_dropout_inside_attention_and_recurrent_layers_stays_off(
    make_objective: MakeObjective,
) -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)
            self.lstm = nn.LSTM(4, 3, num_layers=2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.lstm(self.encoder(x[:, None]))[0][:, 0]
            return out

    trained = make_objective(Layers(), X, Y, train_mode=True)
    assert trained.loss == pytest.approx(make_objective(Layers(), X, Y).loss, rel=1e-6)


def test_losses_without_gradient_or_terms(make_objective: MakeObjective) -> None:
    with pytest.raises(LossError, match="does not depend on the parameters"):
        objective_of(nn.Linear(4, 3), [Batch(X, 6)], lambda m, d: (m(d).detach().sum(), 6.0))
    with pytest.raises(DataError, match="every target is ignored"):
        make_objective(nn.Linear(4, 3), X, torch.full((6,), -100))
    with pytest.raises(DataError, match="no batches"):
        objective_of(nn.Linear(4, 3), [], lambda m, d: (m(d).sum(), 6.0))


def test_parameters_by_glob_and_integer_parameters(make_objective: MakeObjective) -> None:
    with pytest.raises(
        ModelError, match=r"no trainable parameter matches 'wieght'\. Did you mean 'weight'"
    ):
        make_objective(nn.Linear(4, 3), X, Y, select=["wieght"])
    frozen = nn.Linear(4, 3).requires_grad_(False)
    with pytest.raises(ModelError, match="no trainable parameter"):
        make_objective(frozen, X, Y)
    mixed = nn.Linear(4, 3)
    mixed.extra = nn.Parameter(torch.arange(3), requires_grad=False)
    assert make_objective(mixed, X, Y).n == 15


def test_gradient_and_value_are_those_of_torch(make_objective: MakeObjective) -> None:
    net = nn.Linear(4, 3)
    objective = make_objective(net, X, Y, splits=[2, 4], weight_decay=0.3)
    loss = F.cross_entropy(net(X), Y) + 0.15 * sum(p.square().sum() for p in net.parameters())
    loss.backward()
    expected = torch.cat([p.grad.reshape(-1) for p in net.parameters() if p.grad is not None])
    assert objective.value() == pytest.approx(float(loss.detach()), rel=1e-6)
    assert torch.allclose(objective.gradient(), expected, atol=1e-6)
    assert torch.allclose(objective.gradient(samples=1), expected, atol=1e-6)
    step = torch.ones(objective.n)
    with objective.moved(step):
        moved = objective.value()
    assert moved != objective.value()
    assert objective.value() == pytest.approx(float(loss.detach()), rel=1e-6)


def test_empty_batches_are_refused() -> None:
    with pytest.raises(CurvError, match="0 samples"):
        as_batch(((torch.zeros(0, 3),), {}, None), opaque=False)
