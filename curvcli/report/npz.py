"""Grids as a file of NumPy."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np


def as_npz(arrays: Mapping[str, Any]) -> bytes:
    """Numbers as float64, with NaN for what is not known; texts as they are."""
    buffer = BytesIO()
    made: dict[str, Any] = {
        name: np.array(values) if _texts(values) else np.array(values, dtype=np.float64)
        for name, values in arrays.items()
    }
    np.savez(buffer, **made)
    return buffer.getvalue()


def _texts(values: Any) -> bool:
    return bool(values) and isinstance(values[0], str)
