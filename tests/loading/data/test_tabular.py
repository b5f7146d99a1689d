"""Tables are read as numbers and classes, and those that do not work say where."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import curvcli
from curvcli.errors import DataError
from curvcli.loading.data.tabular import read_table
from tests.oracles.checkpoints import stored


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
