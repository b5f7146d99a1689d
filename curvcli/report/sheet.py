"""The main table of an answer for other programs: CSV, or Parquet by pyarrow."""

import csv
import math
import re
from collections.abc import Sequence
from io import BytesIO, StringIO

from curvcli.errors import OutputError, printable
from curvcli.report.data import Bar, Block, Cell, Measured, State, Table, flat

# A number, or a percentage, and nothing beside it.
_WRITTEN = re.compile(r"(-?\d+(?:\.\d+)?(?:e[-+]\d+)?)( ?%)?")
Value = str | int | float | bool | None


def render(blocks: Sequence[Block], kind: str) -> bytes:
    """The first table among the blocks, numbers in full but for those that the table itself rounds.

    A value with an error is two columns: ``λ ± residual`` becomes ``λ`` and ``residual``. Bars are left out.

    Args:
        blocks: of the answer.
        kind: ``csv`` or ``parquet``.

    Raises:
        OutputError: there is no table, or pyarrow is not installed.
    """
    table = next((block for block in flat(blocks) if isinstance(block, Table)), None)
    if table is None:
        raise OutputError(
            "this answer has no table to write", "name a file that ends in .json, .md or .html"
        )
    columns = columns_of(table)
    return _parquet(columns) if kind == "parquet" else _csv(columns)


def columns_of(table: Table) -> dict[str, list[Value]]:
    """The table column by column; names that come twice are numbered, bars are left out."""
    found: dict[str, list[Value]] = {}
    for index, column in enumerate(table.columns):
        cells = [row[index] for row in table.rows]
        if cells and all(isinstance(cell, Bar) for cell in cells):
            continue
        name, _, error = column.name.partition(" ± ")
        name = _free(printable(name) or "state", found)
        found[name] = [_number(v) if column.numeric else v for v in map(_value, cells)]
        if any(isinstance(cell, Measured) for cell in cells):
            found[_free(error or f"{name} error", found)] = [
                _finite(cell.error) if isinstance(cell, Measured) else None for cell in cells
            ]
    return found


def _free(name: str, taken: dict[str, list[Value]]) -> str:
    """``name``, numbered where it is taken."""
    number = sum(key == name or key.startswith(f"{name} (") for key in taken)
    return f"{name} ({number + 1})" if number else name


def _value(cell: Cell) -> Value:
    if isinstance(cell, Measured):
        return _finite(cell.value)
    if isinstance(cell, State):
        return cell.text
    if isinstance(cell, float):
        return _finite(cell)
    return printable(cell) if isinstance(cell, str) else None if isinstance(cell, Bar) else cell


def _number(value: Value) -> Value:
    """What stands as text among numbers, rounded for readers, as the number that it is; a share of 23.3 % as 0.233."""
    found = _WRITTEN.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    return float(found[1]) / 100 if found[2] else float(found[1])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _csv(columns: dict[str, list[Value]]) -> bytes:
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_inert(v) for v in row] for row in zip(*columns.values(), strict=True))
    return buffer.getvalue().encode()


def _inert(value: Value) -> Value:
    """A spreadsheet would run a name that looks like a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@" and value else value


def _parquet(columns: dict[str, list[Value]]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise OutputError(
            "Parquet files are written by pyarrow, which is not installed",
            "pip install 'curvcli[tabular]', or name a file that ends in .csv",
        ) from None
    # A column of several types, such as a count beside a word, is text.
    plain = {
        name: values
        if len({type(v) for v in values if v is not None}) < 2
        else [None if v is None else str(v) for v in values]
        for name, values in columns.items()
    }
    buffer = BytesIO()
    parquet.write_table(pyarrow.table(plain), buffer)
    return buffer.getvalue()
