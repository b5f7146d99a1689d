"""Counts of what was tried and what missed, and a network with its dense Hessian to ask."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from curvcli import Subject, analyse
from tests.oracles.mixture import Sample


@dataclass
class Tally:
    """What was tried, and what missed."""

    tried: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    which: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, holds: bool, name: str) -> None:
        """One interval."""
        self.tried[kind] += 1
        if not holds:
            self.missed[kind] += 1
            self.which.setdefault(kind, []).append(name)

    def __add__(self, other: "Tally") -> "Tally":
        which = {
            kind: self.which.get(kind, []) + other.which.get(kind, [])
            for kind in [*self.which, *other.which]
        }
        return Tally(self.tried + other.tried, self.missed + other.missed, which)

    def table(self) -> str:
        """Misses with Clopper and Pearson's interval of 95 %, as Markdown."""
        rows = ["| what | missed | tried | share, 95 % |", "|---|---|---|---|"]
        for kind in sorted(self.tried):
            bad, n = self.missed[kind], self.tried[kind]
            low = stats.beta.ppf(0.025, bad, n - bad + 1) if bad else 0.0
            high = stats.beta.ppf(0.975, bad + 1, n - bad) if bad < n else 1.0
            rows.append(f"| {kind} | {bad} | {n} | {low:.1%} to {high:.1%} |")
        return "\n".join(rows)


@dataclass(frozen=True)
class Truth:
    """A network with its dense Hessian."""

    network: Sample
    hessian_NN: Tensor
    values_N: Tensor
    """Its eigenvalues, largest first,"""
    error: float
    """each off by no more than this."""
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.network.name} {self.kind('')}"

    def kind(self, what: str) -> str:
        """``what`` with the precision."""
        return f"{what}, {str(self.dtype).removeprefix('torch.')}"

    def ask(self, command: str, **options: Any) -> Any:
        """The answer of the program."""
        subject = Subject(objective=self.network.objective(self.dtype))
        return analyse(command, subject, **options)

    def near(self, value: float, residual: float) -> bool:
        """Whether an eigenvalue lies within value ± residual."""
        return float((self.values_N - value).abs().min()) <= residual + self.error

    def within(self, reach: Any) -> bool:
        """Whether all eigenvalues do."""
        low, high = float(self.values_N[-1]), float(self.values_N[0])
        return bool(reach.lower <= low + self.error and high <= reach.upper + self.error)


def half_width(estimate: Any) -> float:
    """Of the 95 % interval of an estimate."""
    if estimate.standard_error is None:
        return math.inf
    degrees = estimate.degrees_of_freedom
    factor = stats.t.ppf(0.975, degrees) if degrees else stats.norm.ppf(0.975)
    return float(factor * estimate.standard_error)
