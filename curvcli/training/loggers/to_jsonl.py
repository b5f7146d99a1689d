"""Figures as lines of JSON."""

from collections.abc import Mapping
from pathlib import Path

import msgspec


class JsonLines:
    """One object a step, added to a file; ``curvcli.jsonl`` by default."""

    def __init__(self, place: str | None) -> None:
        self._path = Path(place or "curvcli.jsonl")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a line."""
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode({"step": step, **figures}) + b"\n")

    def close(self) -> None:
        """Nothing is held."""


make = JsonLines
