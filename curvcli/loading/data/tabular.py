"""Tables (``.csv``, ``.parquet``) -> a matrix of inputs and a vector of targets."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curvcli.errors import CurvError, DataError, did_you_mean, some
from curvcli.files import check_regular
from curvcli.machine.memory import check_fits, not_of_memory

SUFFIXES = (".csv", ".parquet")
CELLS = 200_000_000
"""Cells of a table; beyond, cut it into files."""
# Bytes of a cell while a table is read: an object, two places that name it, two numbers in float64 and one in float32.
_CELL = 64 + 2 * 8 + 2 * 8 + 4
_BLOCK = 1 << 20
_USUAL = ("y", "target", "targets", "label", "labels", "class")


def is_table(source: str) -> bool:
    """Whether ``--data`` names a table."""
    return Path(source).suffix.lower() in SUFFIXES


def read_table(
    path: Path,
    target: str | None,
    inputs: Sequence[str],
    notes: list[str],
    memory: int | None = None,
) -> dict[str, Any]:
    """``{"x": (rows, columns) float32, "y": (rows,)}``.

    Targets that are whole numbers are classes (int64), others are values (float32); words become the number of
    their place in the alphabet, with a note.

    Args:
        path: with a heading in its first line (``.csv``), or named columns (``.parquet``).
        target: column of the targets; default: one with a usual name.
        inputs: columns of the inputs, in order; default: all others.
        notes: told what was chosen.
        memory: bytes that the process may use in all; None: as many as there are.

    Raises:
        MemoryLimitError: it does not fit; seen before it is read.
        DataError: missing, damaged, empty; a column is not there, not numeric, or has gaps.
    """
    check_regular(path, DataError, "data file")
    read = _read_csv if path.suffix.lower() == ".csv" else _read_parquet
    columns = read(path, memory)
    chosen = target or next((n for n in columns if n.lower() in _USUAL), None)
    for name in (*inputs, *([chosen] if chosen else [])):
        if name not in columns:
            raise DataError(
                f"{path.name} has no column {name!r}.{did_you_mean(name, columns)}",
                f"it has {some(columns, 8)}",
            )
    if chosen is None:
        raise DataError(
            f"{path.name}: which column holds the targets? It has {some(columns, 8)}",
            "name it by --target-column",
        )
    if target is None:
        notes.append(f"the column {chosen!r} is taken as the targets")
    names = list(inputs) or [n for n in columns if n != chosen]
    if not names:
        raise DataError(f"{path.name} has no column of inputs", "add one")
    x = np.stack([_numbers(columns[n], n, path) for n in names], 1).astype(np.float32)
    return {"x": torch.from_numpy(x), "y": _targets(columns[chosen], chosen, path, notes)}


def _targets(column: Sequence[Any], name: str, path: Path, notes: list[str]) -> torch.Tensor:
    texts = [v for v in column if isinstance(v, str) and not _is_number(v)]
    if texts and len(texts) == len(column):
        classes = sorted(set(texts))
        notes.append(
            f"classes of {name!r}: " + ", ".join(f"{c!r} = {i}" for i, c in enumerate(classes[:10]))
        )
        number = {c: i for i, c in enumerate(classes)}
        return torch.tensor([number[v] for v in column])
    values = _numbers(column, name, path)
    if bool((values == np.round(values)).all()) and bool((np.abs(values) < 2**53).all()):
        return torch.from_numpy(values.astype(np.int64))
    return torch.from_numpy(values.astype(np.float32))


def _numbers(column: Sequence[Any], name: str, path: Path) -> "np.ndarray[Any, Any]":
    out = np.empty(len(column), dtype=np.float64)
    for row, value in enumerate(column):
        if value is None or value == "":
            raise DataError(
                f"{path.name}: the column {name!r} is empty in row {row + 1}",
                "fill the gaps or drop the rows",
            )
        try:
            out[row] = float(value)
        except (TypeError, ValueError, OverflowError):
            raise DataError(
                f"{path.name}: the column {name!r} holds {str(value)[:40]!r} in row {row + 1}, not a number",
                "encode it as numbers, or choose the inputs by --input-key",
            ) from None
    wrong = np.flatnonzero(~np.isfinite(out))
    if len(wrong):
        row = int(wrong[0])
        more = f" and {len(wrong) - 1} more rows" if len(wrong) > 1 else ""
        raise DataError(
            f"{path.name}: the column {name!r} is {out[row]} in row {row + 1}{more}",
            "fill the gaps or drop the rows",
        )
    return out


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_size(cells: int, size: int, memory: int | None, path: Path) -> None:
    """Before a table of so many cells and bytes of content is read."""
    if cells > CELLS:
        raise DataError(f"{path.name} has more than {CELLS} cells", "cut it into files")
    check_fits(size + _CELL * cells, memory, f"the table {path.name}")


def _count_cells(path: Path) -> int:
    """Cells of a .csv file, at most: separators in quotes count too."""
    cells = 1
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            cells += block.count(b",") + block.count(b"\n")
    return cells


def _read_csv(path: Path, memory: int | None) -> Mapping[str, Sequence[Any]]:
    rows: list[list[str]] = []
    heading: list[str] = []
    try:
        _check_size(_count_cells(path), path.stat().st_size, memory, path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.reader(file):
                if not row:
                    continue
                if not heading:
                    heading = [name.strip() for name in row]
                    continue
                if len(row) != len(heading):
                    raise DataError(
                        f"{path.name}: row {len(rows) + 1} has {len(row)} cells, the heading {len(heading)}",
                        "mend that row",
                    )
                rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path.name} is not a readable .csv file: {error}", "save it as UTF-8"
        ) from None
    return _named(heading, [list(c) for c in zip(*rows, strict=True)], path)


def _read_parquet(path: Path, memory: int | None) -> Mapping[str, Sequence[Any]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{path.name}: Parquet files need pyarrow", "pip install 'curvcli[tabular]'"
        ) from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        size = sum(max(0, group.total_byte_size) for group in groups)
        _check_size(file.metadata.num_rows * file.metadata.num_columns, size, memory, path)
        table = file.read()
        columns = [c.to_pylist() for c in table.columns]
    except CurvError:
        raise
    except Exception as error:  # pyarrow raises its own and Python's errors on damaged files
        not_of_memory(error)
        raise DataError(
            f"{path.name} is not a readable Parquet file: {' '.join(str(error).split())[:160]}",
            "save it again",
        ) from None
    return _named(table.column_names, columns, path)


def _named(names: list[str], columns: list[list[Any]], path: Path) -> Mapping[str, Sequence[Any]]:
    if not columns or not columns[0]:
        raise DataError(f"{path.name} has no rows", "pass data with at least one sample")
    twice = {n for n, count in Counter(names).items() if count > 1}
    if twice:
        if all(_is_number(n) for n in names):
            raise DataError(
                f"{path.name} begins with a row of numbers, not with the names of the columns",
                "put names into its first row, the labels called y",
            )
        raise DataError(f"{path.name} has several columns {some(sorted(twice))}", "rename them")
    return dict(zip(names, columns, strict=True))
