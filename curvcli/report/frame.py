"""The main table of an answer for pandas."""

from collections.abc import Sequence
from typing import Any

from curvcli.errors import UsageError
from curvcli.report.data import Block, Table, flat
from curvcli.report.sheet import columns_of


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
