"""Sums over the spectrum, Σ f(λ_i): exact on a Krylov space, stochastic on its complement.

tr f(A) = tr Qᵀ f(A) Q + E[yᵀ f(A) y] for any orthonormal Q, with y a random vector on the complement of Q, of squared
length n − m. Q takes the leading eigenvectors' variance away, as in Hutch++ (Meyer, Musco, Musco & Woodruff, SOSA
2021); as a Krylov space it needs no second product for each vector (Chen & Hallman, SIAM J. Matrix Anal. Appl. 44,
2023). For f(λ) = λ and λ² both parts are exact up to the sampling of y; for other f they are Gauss rules.

Shapes: ``N`` length of a vector, ``M`` vectors of Q, ``L`` all Krylov vectors, ``P`` probes, ``B`` blocks of entries.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from curvcli.linalg.lanczos.lanczos import Status
from curvcli.linalg.operator import Float64Array, SymmetricOperator, holders_of
from curvcli.linalg.run_log import UNSAVED, Kept, Logged, RunLog
from curvcli.linalg.statistics.student import quantile
from curvcli.linalg.stochastic.krylov import Function, Krylov, krylov
from curvcli.linalg.stochastic.probes import Sums, jackknife
from curvcli.linalg.stochastic.quadrature import (
    Nodes,
    Rules,
    Stopped,
    gauss_rules,
    random_complement,
)
from curvcli.linalg.vectors import double

BlockSums = Callable[[Tensor], Tensor]
"""A vector of shape (n,) -> sums over blocks of its entries, shape (B,)."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class SpectralSum:
    """A sum over the spectrum."""

    value: float
    standard_error: float
    """Of the sampling; 0 where the sum is exact."""
    degrees: int
    """Degrees of freedom of the standard error."""

    @property
    def half_width(self) -> float:
        """Of the interval that holds the sum with 95 % probability."""
        if self.standard_error == 0:
            return 0.0
        return quantile(CONFIDENCE, max(1, self.degrees)) * self.standard_error


# Of the tolerance, for the error of Gauss rules, which more probes do not make smaller.
_SHARE = 0.25
_LOOSER = 5
# Further probes before the next look, relative to those there are.
_MORE = 0.5
# Probes with more than one product, at least.
RULES = 6
# A trace that is small beside ‖A‖_F is known to so many times the tolerance of the norm: P vectors leave an error
# of √(2/P) ‖A‖_F, so that a fiftieth of the norm would take five thousand.
OF_NORM = 2.5


class ByHalf(NamedTuple):
    """The Gauss rules of a probe after all of its steps, and after half of them."""

    nodes: Nodes
    half: Nodes


@dataclass
class Probes:
    """What random vectors on the complement of Q say, one after the other."""

    op: SymmetricOperator
    exact: Krylov
    generator: torch.Generator
    blocks: BlockSums = field(default=lambda _: torch.zeros(0))
    log: RunLog = UNSAVED
    rules: list[ByHalf] = field(default_factory=list)
    """Of the probes with more than one step."""
    forms: list[float] = field(default_factory=list)
    """yᵀAy of every probe,"""
    squares: list[float] = field(default_factory=list)
    """‖Ay‖² of every probe,"""
    block_forms: list[Float64Array] = field(default_factory=list)
    """and Σ y ⊙ Ay over each block."""

    @property
    def dimension(self) -> int:
        """n − m, the squared length of y."""
        return self.op.n - self.exact.kept

    def add(self, steps: int, stop: Callable[[], Status | None] = lambda: None) -> None:
        """One more probe, of ``steps`` products.

        Raises:
            Stopped: ``stop`` gave a reason meanwhile; a first probe counts as far as it came.
        """
        name = f"probe {self.exact.kept} {steps}"
        try:
            kept = self.log.step(name, self.generator, lambda: self._probe(steps, stop))
        except Stopped as early:
            if not self.forms:
                self._take(self._kept(early.rules), steps)
            raise
        self._take(kept, steps)

    def _take(self, kept: Kept, steps: int) -> None:
        if steps > 1:
            self.rules.append(ByHalf(*(Nodes(*kept[key].numpy()) for key in ("nodes", "half"))))
        form, square = kept["sums"].tolist()
        self.forms.append(self.dimension * form)
        self.squares.append(self.dimension * square)
        self.block_forms.append(self.dimension * kept["blocks"].numpy())

    def _probe(self, steps: int, stop: Callable[[], Status | None]) -> Kept:
        """What a random vector says of A."""
        q_N = random_complement(self.op, self.exact.kept_MN, self.generator)
        return self._kept(gauss_rules(self.op, q_N, steps, stop))

    def _kept(self, rules: Rules) -> Kept:
        products_N = rules.start_N * rules.first_N
        own_2 = torch.stack([double(products_N).sum(), double(rules.first_N).square().sum()])
        return {
            "nodes": rules.nodes.tensor(),
            "half": rules.half.tensor(),
            "sums": holders_of(self.op).over_entries(own_2).cpu().double(),
            "blocks": self.blocks(products_N).cpu().double(),
        }

    def trace(self) -> SpectralSum:
        """tr A."""
        return self._sum(self.exact.trace_of(lambda x: x), self.forms)

    def square_sum(self) -> SpectralSum:
        """Σ λ² = ‖A‖_F²."""
        return self._sum(self.exact.trace_of(np.square), self.squares)

    def sum_of(self, function: Function) -> SpectralSum:
        """Σ f(λ); the standard error holds the sampling and the Gauss rules' error (`rule_error`)."""
        found = self.sampled(function)
        error = self.rule_error(function)
        return SpectralSum(found.value, math.hypot(found.standard_error, error), found.degrees)

    def sampled(self, function: Function) -> SpectralSum:
        """Σ f(λ) with the standard error of the sampling alone."""
        return self._sum(self.exact.trace_of(function), self._values(function)[0])

    def rule_error(self, function: Function) -> float:
        """How far the rules of half the steps are from those of all, on average: more than the latter's own error."""
        values, halves = self._values(function)
        return abs(float(np.mean(np.subtract(values, halves)))) if values else 0.0

    def participation_ratio(self) -> SpectralSum:
        """(Σ λ)² / Σ λ² with a jackknife standard error."""
        fixed = np.array([self.exact.trace_of(f) for f in (lambda x: x, np.square)])
        samples_P2 = np.array([self.forms, self.squares]).T
        p = len(samples_P2)

        def value(chosen: Sequence[int]) -> float:
            total, squares = fixed + samples_P2[chosen].mean(0) if len(chosen) else fixed
            return float(total**2 / squares) if squares else 0.0

        whole, error = value(range(p)), jackknife(value, p)
        if error is None:
            return SpectralSum(whole, math.nan if self.dimension else 0.0, 0)
        return SpectralSum(whole, error, p - 1)

    def block_traces(self) -> list[SpectralSum]:
        """Σ of the diagonal of A over each block."""
        exact_B = self.blocks(self.exact.diagonal()).cpu().double().numpy()
        samples = np.array(self.block_forms).reshape(len(self.block_forms), len(exact_B))
        return [self._sum(float(e), samples[:, b].tolist()) for b, e in enumerate(exact_B)]

    def _sum(self, exact: float, samples: list[float]) -> SpectralSum:
        return _sum(exact, samples, self.dimension)

    def _values(self, function: Function) -> tuple[list[float], list[float]]:
        """yᵀ f(A) y of each probe with steps, by all of them and by half."""
        return tuple(  # type: ignore[return-value]
            [self.dimension * float(n.weights_M @ function(n.theta_M)) for n in nodes]
            for nodes in ([r.nodes for r in self.rules], [r.half for r in self.rules])
        )


def _sum(exact: float, samples: list[float], dimension: int) -> SpectralSum:
    """The exact part and the mean of the samples, which stand for a complement of this dimension."""
    found = Sums(exact, samples).estimate()
    if found is None:
        return SpectralSum(exact, math.nan if dimension else 0.0, 0)
    error = math.nan if found.standard_error is None else found.standard_error
    return SpectralSum(found.value, error, len(samples) - 1)


@dataclass(frozen=True)
class Goal:
    """When there are enough probes."""

    tol: float
    """Standard error of the norm, and of the trace relative to the larger of it and `OF_NORM` norms."""
    functions: tuple[Function, ...] = ()
    """Whose sums are wanted too, to five times the tolerance: they take many products."""
    max_steps: int = 100
    """Products of a probe that functions of the spectrum are taken from, at most."""
    probes: int = 10
    """At least: fewer do not tell their own spread. Of these, so many as `RULES` tells take more than one product."""
    max_matvecs: int = 500


def estimate(
    op: SymmetricOperator,
    kept: int,
    goal: Goal,
    generator: torch.Generator,
    *,
    blocks: BlockSums = lambda _: torch.zeros(0),
    stop: Callable[[], Status | None] = lambda: None,
    progress: Callable[[int], None] = lambda _: None,
    log: RunLog = UNSAVED,
) -> tuple[Probes, Status]:
    """Probes until the standard errors are small enough.

    Args:
        op: A.
        kept: vectors of Q.
        goal: when to end.
        generator: of the random vectors.
        blocks: for `Probes.block_traces`.
        stop: asked before each product; a reason ends the run.
        progress: told the products done.
        log: that the run goes on from.

    Returns:
        The probes, and ``converged``, ``max_matvecs`` or the reason to stop.
    """
    # Half of the products at most, so that something is left for the probes.
    if kept < op.n or op.n > goal.max_matvecs:
        kept = min(kept, max(1, goal.max_matvecs // 4))
    op = Logged(op, log)
    exact = krylov(
        op,
        kept,
        generator,
        functions=goal.functions,
        tol=_SHARE * goal.tol,
        max_steps=min(goal.max_steps, max(1, goal.max_matvecs // 4)),
        stop=stop,
    )
    probes = Probes(op, exact, generator, blocks, log)
    spent = len(exact.vectors_LN)
    most = max(1, spent - exact.kept)
    if exact.kept == op.n:
        return probes, "converged"
    while wanted := _next_probes(probes, goal, most):
        for steps in wanted:
            progress(spent)
            if (reason := stop()) is not None:
                return probes, reason
            if spent + 1 > goal.max_matvecs:
                return probes, "max_matvecs"
            made = steps if spent + steps <= goal.max_matvecs else 1
            try:
                probes.add(made, stop)
            except Stopped as early:
                return probes, early.reason
            spent += len(probes.rules[-1].nodes.theta_M) if made > 1 else 1
    return probes, "converged"


def _next_probes(probes: Probes, goal: Goal, most: int) -> list[int]:
    """Products of each of the next probes: ``most`` where functions need them, one for the trace; none at the end.

    A look after every probe would stop where the spread happens to look small: at each look there are half as many
    probes again.
    """
    if not probes.forms:
        rules = min(RULES, goal.probes) if goal.functions else 0
        return [most] * rules + [1] * (goal.probes - rules)
    more = math.ceil(_MORE * len(probes.forms))
    for function in goal.functions:
        found = probes.sampled(function)
        if found.standard_error > _LOOSER * goal.tol * abs(found.value):
            return [most] * more
    trace, squares = probes.trace(), probes.square_sum()
    scale = max(abs(trace.value), OF_NORM * math.sqrt(max(0.0, squares.value)))
    if trace.standard_error > goal.tol * scale:
        return [1] * more
    # The norm is the root: its relative error is half as large.
    return [1] * more if squares.standard_error > 2 * goal.tol * squares.value else []
