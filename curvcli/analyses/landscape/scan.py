"""Which points are looked at: a grid from coarse to fine, then more where the loss bends or the model fails."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from curvcli.analyses.landscape.model import Model
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.linalg.run_log import RunLog
from curvcli.operators.surface.plane import Sampled, Surface, sampled

Place = tuple[float, ...]

# A curve is smooth where no point is off the line between its neighbours by more than this share of the height.
_SMOOTH = 0.005
# Points on a line between two checkpoints.
ON_SEGMENT = 11


class Scan:
    """The loss at places, each evaluated once, kept in a log and cut short by the journal.

    Args:
        surface: of the data.
        other: of the second data set.
        log: of the run.
        journal: asked whether to go on.
    """

    def __init__(
        self, surface: Surface, other: Surface | None, log: RunLog, journal: Journal
    ) -> None:
        self._surface, self._other, self._log, self._journal = surface, other, log, journal
        self.known: dict[Place, Sampled] = {}
        self.others: dict[Place, Sampled] = {}
        self.expected: int | None = None
        self.missing = 0
        """Points that there was no time for."""
        self.origin: Place = (0.0,) * len(surface.directions)
        self._look(self.origin)  # whatever the time: nothing is known without it

    @property
    def centre(self) -> Sampled:
        """At the weights."""
        return self.known[self.origin]

    def loss(self, place: Place) -> float:
        """NaN where there was no time for it."""
        place = tuple(float(x) + 0.0 for x in place)
        if place not in self.known:
            if self._journal.stop() is not None:
                self.missing += 1
                return math.nan
            self._look(place)
        return self.known[place].loss

    def finite(self) -> list[Place]:
        """The places where the loss is finite, in order."""
        return sorted(p for p, s in self.known.items() if math.isfinite(s.loss))

    def _look(self, place: Place) -> None:
        done = len(self.known)
        self._journal.progress(Stage("points", done, max(self.expected or 1, done + 1)))

        def compute() -> dict[str, torch.Tensor]:
            kept = self._surface(*place).kept()
            if self._other is not None:
                kept |= {f"other_{k}": t for k, t in self._other(*place).kept().items()}
            return kept

        kept = self._log.step(f"point {place!r}", torch.Generator(), compute)
        self.known[place] = sampled(kept)
        if self._other is not None:
            self.others[place] = sampled(
                {k.removeprefix("other_"): t for k, t in kept.items() if k.startswith("other_")}
            )


def grid(low: float, high: float, points: int) -> list[float]:
    """Equal distances, with 0 among them where it lies within.

    >>> grid(-1.0, 1.0, 5)
    [-1.0, -0.5, 0.0, 0.5, 1.0]
    >>> grid(-0.5, 1.0, 3)
    [-0.5, 0.0, 1.0]
    """
    found = np.linspace(low, high, points)
    if low < 0 < high:
        found[1:-1][np.abs(found[1:-1]).argmin()] = 0.0
    return [float(x) for x in found]


def coarse_to_fine(count: int) -> list[int]:
    """Every eighth number, then every fourth, and so on: cut short, they still cover the whole.

    >>> coarse_to_fine(5)
    [0, 4, 2, 1, 3]
    """
    order: dict[int, None] = {}
    step = 8
    while step:
        order |= dict.fromkeys(range(0, count, step))
        step //= 2
    return sorted(order, key=lambda i: -math.gcd(i, 8))


def look_at_grid(scan: Scan, axes: Sequence[list[float]]) -> None:
    """All points of the grid."""
    if len(axes) == 1:
        for i in coarse_to_fine(len(axes[0])):
            scan.loss((axes[0][i],))
        return
    levels = [
        (math.gcd(i, 8), math.gcd(j, 8), i, j)
        for i in range(len(axes[0]))
        for j in range(len(axes[1]))
    ]
    for *_, i, j in sorted(levels, key=lambda e: (-min(e[0], e[1]), e[3], e[2])):
        scan.loss((axes[0][i], axes[1][j]))


def look_closer(scan: Scan, model: Model | None, points: int, curve: bool) -> None:
    """Spend points where the model ceases to hold, at the lowest point and, on a curve, where it bends.

    Args:
        scan: with its grid.
        model: the quadratic one.
        points: at most.
        curve: whether there is one direction.
    """
    share = points // 4
    for _ in range(share if model is not None else 0):
        place = _edge_of_trust(scan, model)
        if place is None:
            break
        scan.loss(place)
    if not curve:
        return
    spent = 0
    for interval in (_beside_lowest, _bent):
        while spent < (share if interval is _beside_lowest else points - share):
            found = interval(scan)
            if found is None or math.isnan(scan.loss((found,))):
                break
            spent += 1


def _edge_of_trust(scan: Scan, model: Model | None) -> Place | None:
    """Half-way between the nearest point where the model is wrong and the last right one before it."""
    if model is None:
        return None
    wrong = model.nearest_wrong(scan.known)
    if wrong is None:
        return None
    t = 1.0
    for place in scan.known:  # the farthest on the same ray
        if model.distance(place) < model.distance(wrong) and _on_ray(place, wrong):
            t = min(t, 1 - model.distance(place) / model.distance(wrong))
    if t < 0.02:
        return None
    return tuple(x * (1 - t / 2) for x in wrong)


def _on_ray(place: Place, end: Place) -> bool:
    inner = sum(a * b for a, b in zip(place, end, strict=True))
    lengths = math.hypot(*place) * math.hypot(*end)
    return inner > 0 and inner >= (1 - 1e-12) * lengths


def _gaps(scan: Scan) -> Iterator[tuple[float, float, float, float]]:
    """Neighbours on a curve (t₀, t₁) with their losses."""
    places = scan.finite()
    for (a,), (b,) in itertools.pairwise(places):
        yield a, b, scan.known[(a,)].loss, scan.known[(b,)].loss


def _beside_lowest(scan: Scan) -> float | None:
    """The middle of the wider gap beside the lowest point."""
    places = [p[0] for p in scan.finite()]
    i = min(range(len(places)), key=lambda k: scan.known[(places[k],)].loss)
    gaps = [(places[k], places[k + 1]) for k in (i - 1, i) if 0 <= k < len(places) - 1]
    if not gaps or len(gaps) < 2:
        return None
    low, high = max(gaps, key=lambda g: g[1] - g[0])
    return (low + high) / 2 if high - low > 1e-3 * (places[-1] - places[0]) else None


def _bent(scan: Scan) -> float | None:
    """The middle of the gap in which a straight line is farthest from the curve; None where it is smooth."""
    gaps = list(_gaps(scan))
    if len(gaps) < 2:
        return None
    losses = [g[2] for g in gaps] + [gaps[-1][3]]
    lowest = min(losses)
    # Heights as they look: a steep wall far away does not hide the valley.
    middle = float(np.median([v - lowest for v in losses])) or 1.0
    tall = [math.log1p((v - lowest) / middle) for v in losses]
    height = max(tall) or 1.0
    slopes = [(tall[i + 1] - tall[i]) / (g[1] - g[0]) for i, g in enumerate(gaps)]
    scores = []
    for i, (a, b, *_) in enumerate(gaps):
        around = [abs(slopes[k] - slopes[i]) for k in (i - 1, i + 1) if 0 <= k < len(gaps)]
        scores.append((max(around) * (b - a) / 8, (a + b) / 2))
    worst, place = max(scores)
    return place if worst > _SMOOTH * height else None
