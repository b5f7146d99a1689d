"""How far the loss rises around θ: at worst in a ball, and on average over Gaussian noise.

With a scale T, a diagonal matrix, steps are δ = T u and it is u that is bounded or drawn: T = I for the plain measures,
T = diag |θ| for the adaptive ones, which do not change when parameters are rescaled and the function stays.

Shapes: ``N`` parameters, ``K`` draws.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curvcli.linalg.operator import normals
from curvcli.objective.batch import Batch
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.curvature import Curvature

Stop = Callable[[], object]

# An ascent that gains less than this share has come to its end.
_GAIN = 1e-4
_HALVINGS = 6


@dataclass(frozen=True)
class Neighbourhood:
    """L around θ, in coordinates u with δ = T u.

    Args:
        operator: whose objective, micro-batches and kernels are used.
        scale_N: diagonal of T; None: the identity.
    """

    operator: Curvature[Any]
    scale_N: Tensor | None = None

    def step(self, u_N: Tensor) -> Tensor:
        """δ."""
        return u_N if self.scale_N is None else self.scale_N * u_N

    def rise(self, u_N: Tensor) -> float:
        """L(θ + T u) − L(θ)."""
        objective, operator = self.operator.objective, self.operator

        def value() -> float:
            with objective.moved(self.step(u_N)), operator.kernels.active():
                return objective.value(operator.micro_batch)

        return operator.within_memory(value) - objective.loss

    def gradient(self, u_N: Tensor) -> Tensor:
        """T ∇L(θ + T u)."""
        objective, operator = self.operator.objective, self.operator

        def found() -> Tensor:
            with objective.moved(self.step(u_N)), operator.kernels.active():
                return objective.gradient(operator.micro_batch)

        return self.step(operator.within_memory(found))


class Climb(NamedTuple):
    """The highest point that an ascent found."""

    rise: float
    u_N: Tensor
    steps: int


def climb(
    around: Neighbourhood, radius: float, starts: Sequence[Tensor], steps: int, stop: Stop
) -> Climb:
    """A lower bound of max L(θ + T u) − L(θ) over ‖u‖ ≤ radius, by ascent from several starts.

    Each step goes towards the highest point of the linear model in the ball, radius · Tg / ‖Tg‖, whole or halved until
    the loss rises (Frank & Wolfe 1956); from u = 0 it is the one step of SAM (Foret et al. 2021, equation 2).

    Args:
        around: the loss.
        radius: ρ.
        starts: vectors whose direction is begun with, beside the gradient's.
        steps: of each ascent at most.
        stop: ends it early.
    """
    zero_N, norm_of = torch.zeros_like(around.operator.gradient), around.operator.ranks.norm
    best = Climb(0.0, zero_N, 0)
    taken = 0
    for start_N in [around.gradient(zero_N), *starts]:
        length = float(norm_of(start_N))
        if not length or not math.isfinite(length):
            continue
        u_N = start_N * (radius / length)
        here = around.rise(u_N)
        for _ in range(steps):
            if stop() is not None or not math.isfinite(here):
                break
            taken += 1
            found = _next(around, radius, u_N, here)
            if found is None:
                break
            gain, (here, u_N) = found[0] - here, found
            if gain <= _GAIN * abs(here):
                break
        if here > best.rise or not math.isfinite(here):
            best = Climb(here, u_N, taken)
    return best._replace(steps=taken)


def _next(
    around: Neighbourhood, radius: float, u_N: Tensor, here: float
) -> tuple[float, Tensor] | None:
    """A higher point towards that of the linear model; None: there is none."""
    uphill_N = around.gradient(u_N)
    length = float(around.operator.ranks.norm(uphill_N))
    if not length or not math.isfinite(length):
        return None
    far_N = uphill_N * (radius / length)
    share = 1.0
    for _ in range(_HALVINGS):
        next_N = u_N + share * (far_N - u_N)
        rise = around.rise(next_N)
        if rise > here:
            return rise, next_N
        share /= 2
    return None


class Mean(NamedTuple):
    """A mean over draws."""

    value: float
    standard_error: float | None
    draws: int


def average_rise(
    around: Neighbourhood, sigma: float, draws: int, seed: int, stop: Stop = lambda: None
) -> Mean:
    """E L(θ + σ T ε) − L(θ) for ε ~ N(0, I), from pairs ± ε.

    On a quadratic it is ½ σ² tr(T H T). Odd orders cancel within a pair.
    """
    rises: list[float] = []
    for k in range(draws):
        if rises and stop() is not None:
            break
        u_N = sigma * drawn(around.operator, seed, k)
        rises.append(0.5 * (around.rise(u_N) + around.rise(-u_N)))
    return mean_of(rises)


def drawn(operator: Curvature[Any], seed: int, number: int) -> Tensor:
    """The ε of one draw, the same whenever it is asked for; of parted vectors, this process' entries."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    own, first, pieces = operator.ranks.entries(operator.n), 0, []
    for piece in normals(operator.n, generator):
        part = piece[max(0, own.start - first) : max(0, own.stop - first)]
        pieces.append(part.to(operator.device, operator.dtype))
        first += len(piece)
    return torch.cat(pieces)


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and standard error.

    >>> mean_of([1.0, 3.0])
    Mean(value=2.0, standard_error=1.0, draws=2)
    """
    n = len(values)
    mean = sum(values) / n
    if n < 2 or not math.isfinite(mean):
        return Mean(mean, None, n)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return Mean(mean, spread / math.sqrt(n), n)


class Width(NamedTuple):
    """The σ at which the expected loss has risen by a given amount."""

    sigma: float
    standard_error: float | None
    draws: int


def width(
    around: Neighbourhood, rise: float, first: float, draws: int, seed: int, stop: Stop
) -> Width | None:
    """σ with E L(θ + σ T ε) − L(θ) = rise, with the same draws at every σ.

    The standard error is that of the mean over its slope in σ.

    Args:
        around: the loss.
        rise: above L(θ).
        first: σ to begin with.
        draws: pairs ± ε.
        seed: of the draws.
        stop: ends it early.

    Returns:
        None where time is up, or the loss does not rise so far.
    """
    low = high = 0.0
    at_low = at_high = 0.0
    sigma = first
    for _ in range(60):
        if stop() is not None:
            return None
        mean = average_rise(around, sigma, draws, seed)
        above = not mean.value < rise  # NaN is above
        if above:
            high, at_high = sigma, mean.value
        else:
            low, at_low = sigma, mean.value
        if high and low and high / low < 1.01:
            slope = (at_high - at_low) / (high - low)
            if not math.isfinite(slope) or slope <= 0:
                return Width(low, None, draws)
            place = low + (rise - at_low) / slope
            error = None if mean.standard_error is None else mean.standard_error / slope
            return Width(place, error, draws)
        sigma = _between(low, high, at_low, at_high, rise)
    return None


def _between(low: float, high: float, at_low: float, at_high: float, rise: float) -> float:
    """The next σ to try: where a power law says, within the bracket; outside it where there is none yet."""
    if not high:
        guess = low * math.sqrt(rise / at_low) * 1.002 if at_low > 0 else 4 * low
        return min(8 * low, max(1.004 * low, guess))
    if not low:
        guess = high * math.sqrt(rise / at_high) * 0.998 if 0 < at_high < math.inf else high / 4
        return max(high / 8, min(high / 1.004, guess))
    middle = math.sqrt(low * high)
    if at_low <= 0 or not math.isfinite(at_high) or at_high <= at_low:
        return middle
    power = math.log(at_high / at_low) / math.log(high / low)
    guess = low * (rise / at_low) ** (1 / power)
    # A little to the wider side, so that the bracket closes from both.
    guess *= 1.002 if guess < middle else 0.998
    return min(high / 1.003, max(low * 1.003, guess)) if high / low > 1.02 else middle


def shard_rises(
    operator: Curvature[Any], radius: float, size: int, most: int, stop: Stop
) -> list[float]:
    """One step of SAM on shards of the data: max ≈ L_M(θ + ρ g_M/‖g_M‖) − L_M(θ) for each shard M of ``size`` samples.

    Their mean is the m-sharpness (Foret et al. 2021, section 4.2).
    """
    objective = operator.objective
    shards = [
        piece
        for b in objective.batches
        for piece in b.pieces(size)
        if piece.size == min(size, b.size)
    ]
    chosen = [
        shards[i * len(shards) // min(most, len(shards))] for i in range(min(most, len(shards)))
    ]
    found: list[float] = []
    for shard in chosen:
        if found and stop() is not None:
            break
        part = _on(objective, shard, operator)
        with operator.kernels.active():
            gradient_N = part.gradient(operator.micro_batch)
            length = float(operator.ranks.norm(gradient_N))
            if not length:
                found.append(0.0)
                continue
            with part.moved(gradient_N * (radius / length)):
                found.append(part.value(operator.micro_batch) - part.loss)
    return found


def _on(objective: Objective, shard: Batch, operator: Curvature[Any]) -> Objective:
    """The loss on a shard alone."""
    with torch.no_grad(), objective.evaluation(), operator.kernels.active():
        _, count = objective.terms(objective.model, shard.data)
    part = replace(objective, batches=[shard], weight=count)
    with operator.kernels.active():
        return replace(part, loss=part.value(operator.micro_batch))
