"""The main table as CSV and Parquet: numbers in full, errors in columns of their own, no formulas."""

import csv
import io

import pytest

from curvcli.errors import OutputError
from curvcli.report.data import Bar, Column, Facts, Measured, State, Table
from curvcli.report.sheet import columns_of, render
from tests.oracles.program import ROOT, invoke

TABLE = Table(
    "t",
    (
        Column("layer", numeric=False),
        Column("λ ± residual"),
        Column("", numeric=False),
        Column("converged", numeric=False),
    ),
    [
        ("=cmd()", Measured(1 / 3, 1e-7), Bar(0.5), State("yes", "good")),
        ("fc", Measured(float("nan"), None), Bar(0.1), State("no", "bad")),
    ],
)


def test_a_table_as_csv() -> None:
    """Read back by Python's own reader."""
    text = render([Facts([("loss", 1.0)]), TABLE], "csv").decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["layer", "λ", "residual", "converged"]
    assert float(rows[0]["λ"]) == 1 / 3
    assert rows[0]["layer"] == "'=cmd()"
    assert rows[1] == {"layer": "fc", "λ": "", "residual": "", "converged": "no"}


def test_errors_of_one_name_are_all_kept() -> None:
    """Two figures with standard errors, as in the table of `trace`: no error takes the place of another."""
    columns = (Column("trace ± s.e."), Column("mean ± s.e."))
    table = Table("t", columns, [(Measured(8.0, 0.5), Measured(2.0, 0.1))])
    assert columns_of(table) == {"trace": [8.0], "s.e.": [0.5], "mean": [2.0], "s.e. (2)": [0.1]}


def test_numbers_written_as_text_are_numbers() -> None:
    """What a view has rounded, and shares; names, bounds and what has a word beside it stay text."""
    columns = (Column("layer", numeric=False), Column("rate"))
    cells = ["1.50", "-2.0e-04", "23.3%", "0.2 %", "≥ 0.03", "0.1 (own)", None, 3]
    table = Table("t", columns, [("7", cell) for cell in cells])
    found = columns_of(table)
    assert found["layer"] == ["7"] * len(cells)
    assert found["rate"] == [
        1.5,
        -2e-4,
        pytest.approx(0.233),
        0.002,
        "≥ 0.03",
        "0.1 (own)",
        None,
        3,
    ]


def test_a_table_as_parquet() -> None:
    """Read back by pyarrow, with its types."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    table = parquet.read_table(io.BytesIO(render([TABLE], "parquet")))
    assert table.column("λ").to_pylist() == [1 / 3, None]
    assert str(table.schema.field("residual").type) == "double"


def test_an_answer_without_a_table_is_refused() -> None:
    with pytest.raises(OutputError, match="no table"):
        render([Facts([("loss", 1.0)])], "csv")


def test_a_suffix_that_cannot_be_written_is_refused_before_anything_is_read() -> None:
    done = invoke("hessian", "no.toml", "-o", "answer.xls")
    assert done.exit_code == 2
    assert "no answer is written as .xls" in done.stderr


def test_the_main_table_of_a_command(tmp_path: object) -> None:
    file = ROOT.joinpath("sample_models", "digits_mlp.safetensors")
    path = f"{tmp_path}/tensors.csv"
    assert invoke("info", str(file), "-o", path).exit_code == 0
    with open(path, encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [r["shape"] for r in rows if r["name"] == "fc1.weight"] == ["128×64"]
