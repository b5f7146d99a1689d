"""Data come from files and Python objects as they are; what is no data is refused with a sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from curvcli.errors import CurvError, DataError
from curvcli.loading.data.batches import arrange, as_batch, fingerprint, read_batches
from tests.oracles.samples import X, Y


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


def test_empty_batches_are_refused() -> None:
    with pytest.raises(CurvError, match="0 samples"):
        as_batch(((torch.zeros(0, 3),), {}, None), opaque=False)
