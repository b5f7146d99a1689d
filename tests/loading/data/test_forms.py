"""Data in the forms that people have them: single arrays, unused ones, one batch or several, gaps named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import curvcli
from curvcli.errors import CurvError, DataError
from curvcli.loading.data.batches import read_batches
from curvcli.machine.containers import tensors_in

MODULE = """
import numpy as np
import torch
from torch import nn
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
x, y = torch.linspace(-1, 1, 40).view(10, 4), torch.arange(10) % 2
def a_dict(): return {"x": x, "y": y}
def a_tuple(): return x, y
def arrays(): return x.numpy(), y.numpy()
def nested(): return {"x": x}, y
def a_tensor(): return x
def an_array(): return x.numpy()
def a_list(): return [(x[:5], y[:5]), (x[5:], y[5:])]
def an_iterator(): yield from a_list()
def listed(): return [x, y]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "forms.py").write_text(MODULE)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "batches", "samples"),
    [
        ("a_dict", 1, 10), ("a_tuple", 1, 10), ("arrays", 1, 10), ("nested", 1, 10), ("a_tensor", 1, 10),
        ("an_array", 1, 10), ("a_list", 2, 10), ("an_iterator", 2, 10),
    ],
)  # fmt: skip
def test_one_batch_or_several(place: Path, name: str, batches: int, samples: int) -> None:
    read = read_batches(f"{place}/forms.py:{name}")
    assert len(read) == batches
    assert sum(len(next(tensors_in(batch))) for batch in read) == samples


def test_a_list_taken_for_a_batch_is_explained(place: Path) -> None:
    """Two tensors in a list are two batches, and the error says how one batch is written."""
    subject = curvcli.load(model="forms.py:net", data="forms.py:listed", loss="cross_entropy")
    with pytest.raises(CurvError) as caught:
        curvcli.analyse("hessian", subject)
    assert "tuple or dict is one batch; a list" in str(caught.value.hint)


def test_a_single_array(place: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(">f8")
    np.save("x.npy", x)
    ((found,),) = read_batches("x.npy")
    assert torch.equal(found, torch.from_numpy(x.astype("f8")))
    np.save("o.npy", np.array([{}], dtype=object))
    Path("d.npy").write_bytes(Path("x.npy").read_bytes()[:90])
    for name in ("o.npy", "d.npy"):
        with pytest.raises(DataError, match=r"not a readable \.npy file"):
            read_batches(name)


def test_unused_arrays_do_not_matter_once_keys_are_named(place: Path) -> None:
    """Names, masks of another length and text beside the data: the loss is that of the data alone."""
    x, y = torch.linspace(-1, 1, 40).view(10, 4), torch.arange(10) % 2
    names = np.array(["a", "b"])
    np.savez("d.npz", x=x.numpy(), y=y.numpy(), names=names, other=np.zeros(3), meta=np.array(7.0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    truth = nn.functional.cross_entropy(model(x), y).item()
    for size in (None, 4):
        subject = curvcli.load(
            model="forms.py:net", data="d.npz", input_key=["x"], target_key="y", loss="cross_entropy",
            batch_size=size,
        )  # fmt: skip
        # float32, in another order.
        assert subject.objective.loss == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_gaps_are_named_by_input_and_sample(place: Path, value: float) -> None:
    x = np.random.default_rng(0).normal(size=(10, 4)).astype("f4")
    x[7, 2] = value
    np.savez("d.npz", pixels=x, y=np.arange(10) % 2)
    load: dict[str, Any] = {
        "model": "forms.py:net",
        "data": "d.npz",
        "loss": "cross_entropy",
        "batch_size": 4,
    }
    words = rf"'pixels' of sample 7 is {value}, entry \[2\]"
    with pytest.raises(CurvError, match=words):
        curvcli.analyse("hessian", curvcli.load(**load))


def test_no_layer_is_blamed_for_gaps_in_the_data(place: Path) -> None:
    x = np.random.default_rng(0).normal(size=(10, 4)).astype("f4")
    x[7, 2] = np.nan
    np.savez("d.npz", pixels=x, y=np.arange(10) % 2)
    subject = curvcli.load(model="forms.py:net", data="d.npz", loss="cross_entropy")
    (finding,) = (
        f for f in curvcli.analyse("gradients", subject).findings if f.rule == "gradients.nonfinite"
    )
    assert "'pixels' of sample 7" in finding.message
    assert "no layer is to blame" in finding.message


def test_a_tuple_of_inputs_goes_to_a_model_that_takes_several(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """((x, t), y), as diffusion models have it, is (x, t, y); a model that takes a pair gets a pair."""
    (place / "several.py").write_text("""
import torch
from torch import nn
class Timed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 2)
    def forward(self, x, t, scale=1.0):
        return scale * self.layer(x) * t[:, None]
class Paired(Timed):
    def forward(self, pair):
        return super().forward(*pair)
x, t, y = torch.linspace(-1, 1, 40).view(10, 4), torch.linspace(1, 2, 10), torch.arange(10) % 2
def pair(): return (x, t), y
def flat(): return x, t, y
""")

    def value(model: str, data: str) -> float:
        subject = curvcli.load(
            model=f"several.py:{model}", data=f"several.py:{data}", loss="cross_entropy"
        )
        return curvcli.analyse("hessian", subject, top=1, bottom=0).result.top[0].value

    expected = value("Timed", "flat")
    assert value("Timed", "pair") == expected
    assert value("Paired", "pair") == expected
