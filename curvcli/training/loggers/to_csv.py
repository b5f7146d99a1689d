"""Figures as a table of comma-separated values."""

import csv
from collections.abc import Mapping
from pathlib import Path


class Csv:
    """A row a figure, as figures come and go; ``curvcli.csv`` by default."""

    def __init__(self, place: str | None) -> None:
        self._path = Path(place or "curvcli.csv")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a row for each figure."""
        new = not self._path.exists()
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "figure", "value"])
            writer.writerows([step, name, repr(value)] for name, value in figures.items())

    def close(self) -> None:
        """Nothing is held."""


make = Csv
