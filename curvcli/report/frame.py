"""The main table of an answer for pandas."""

from collections.abc import Sequence
from typing import Any

from curvcli.errors import UsageError
from curvcli.report.data import Bar, Block, Cell, Measured, State, Table, flat


def frame_of(blocks: Sequence[Block]) -> Any:
    """The first table as a `pandas.DataFrame`; a number with its error becomes two columns.

    Raises:
        UsageError: pandas is not installed, or there is no table.
    """
    table = next((block for block in flat(blocks) if isinstance(block, Table)), None)
    if table is None:
        raise UsageError("this answer has no table", "use to_dict()")
    try:
        import pandas as pd
    except ImportError:
        raise UsageError("tables for pandas need pandas", "pip install pandas") from None
    return pd.DataFrame(columns_of(table))


def columns_of(table: Table) -> dict[str, list[Any]]:
    """The table column by column, bars left out."""
    found: dict[str, list[Any]] = {}
    for index, column in enumerate(table.columns):
        cells = [row[index] for row in table.rows]
        if any(isinstance(cell, Bar) for cell in cells):
            continue
        if any(isinstance(cell, Measured) for cell in cells):
            name, _, error = column.name.partition(" ± ")
            found[name] = [cell.value if isinstance(cell, Measured) else cell for cell in cells]
            found[error or f"{name} error"] = [_error(cell) for cell in cells]
        else:
            found[column.name] = [cell.text if isinstance(cell, State) else cell for cell in cells]
    return found


def _error(cell: Cell) -> float | None:
    return cell.error if isinstance(cell, Measured) else None
