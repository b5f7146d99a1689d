"""What the points say: where the loss is lowest, whether it is convex, how high a barrier is."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from curvcli.analyses.landscape.model import Model, Place
from curvcli.analyses.landscape.result import Barrier, Bend, Lowest
from curvcli.analyses.landscape.scan import ON_SEGMENT, Scan

CERTAIN = 3.0
"""Standard errors beyond which a difference is no sampling."""
_ROUNDS = 4


def lowest(scan: Scan, model: Model) -> Lowest | None:
    """The lowest of all points, and how its loss compares with that of the weights."""
    places = scan.finite()
    if scan.origin not in places:
        return None
    place = min(places, key=lambda p: (scan.known[p].loss, model.distance(p)))
    here, there = scan.centre, scan.known[place]
    change = there.loss - here.loss
    residual = model.rounding(here.loss) + model.rounding(there.loss)
    error = there.error((-1.0, here)) if place != scan.origin else 0.0
    return Lowest(
        place=list(place),
        distance=model.distance(place),
        loss=there.loss,
        change=change,
        change_residual=residual,
        change_standard_error=error,
        lower=change < -residual,
        beyond_sampling=None if error is None else change < -residual - CERTAIN * error,
    )


def bend(scan: Scan, model: Model, axes: Sequence[list[float]]) -> Bend:
    """The point that lies highest above a chord, of all lines of points: the curve, or rows, columns and diagonals."""
    best = Bend(convex=True, above_chord=0.0, above_chord_residual=0.0, place=list(scan.origin))
    beyond = 0.0
    for line in _lines(scan, axes):
        finite = [p for p in line if p in scan.known and math.isfinite(scan.known[p].loss)]
        if len(finite) < 3:
            continue
        along = [math.dist(p, finite[0]) for p in finite]
        losses = [scan.known[p].loss for p in finite]
        for i, above, largest in _above_hull(along, losses):
            residual = 2 * model.rounding(largest)
            if above - residual > beyond:
                beyond = above - residual
                best = Bend(
                    convex=False, above_chord=above, above_chord_residual=residual,
                    place=list(finite[i]),
                )  # fmt: skip
    return best


def _lines(scan: Scan, axes: Sequence[list[float]]) -> list[list[Place]]:
    if len(axes) == 1:
        return [scan.finite()]
    xs, ys = axes
    rows: list[list[Place]] = [[(x, y) for x in xs] for y in ys]
    rows += [[(x, y) for y in ys] for x in xs]
    # Points of a diagonal lie on a line where the grid is even; 0 may have been moved into it.
    even = all(np.allclose(np.diff(a), np.diff(a).mean(), rtol=1e-9) for a in axes)
    if even and len(xs) == len(ys):
        n = len(xs)
        for shift in range(-n + 3, n - 2):
            pairs = [(i, i + shift) for i in range(n) if 0 <= i + shift < n]
            rows.append([(xs[i], ys[j]) for i, j in pairs])
            rows.append([(xs[i], ys[n - 1 - j]) for i, j in pairs])
    return rows


def _above_hull(along: list[float], losses: list[float]) -> list[tuple[int, float, float]]:
    """(point, height above the lower convex hull, largest loss of the point and the ends of its chord)."""
    hull: list[int] = []
    for i in range(len(along)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            left = (losses[b] - losses[a]) * (along[i] - along[a])
            if left < (losses[i] - losses[a]) * (along[b] - along[a]):
                break
            hull.pop()
        hull.append(i)
    found = []
    for a, b in itertools.pairwise(hull):
        for i in range(a + 1, b):
            share = (along[i] - along[a]) / (along[b] - along[a])
            chord = (1 - share) * losses[a] + share * losses[b]
            largest = max(abs(losses[k]) for k in (a, i, b))
            found.append((i, losses[i] - chord, largest))
    return found


def barrier(
    scan: Scan, model: Model, ends: tuple[tuple[str, Place], tuple[str, Place]]
) -> Barrier | None:
    """The highest point above the straight line between the losses of two checkpoints; None for want of time."""
    (name_a, a), (name_b, b) = ends

    def place(share: float) -> Place:
        return tuple((1 - share) * x + share * y for x, y in zip(a, b, strict=True))

    losses = scan.loss(place(0.0)), scan.loss(place(1.0))
    shares = sorted({k / (ON_SEGMENT - 1) for k in range(ON_SEGMENT)})
    excess = {s: _excess(scan.loss(place(s)), losses, s) for s in shares}
    for _ in range(_ROUNDS):
        finite = sorted(s for s, v in excess.items() if math.isfinite(v))
        if len(finite) < 3:
            break
        i = finite.index(max(finite, key=lambda s: excess[s]))
        for k in (i - 1, i):
            if 0 <= k < len(finite) - 1:
                middle = (finite[k] + finite[k + 1]) / 2
                excess[middle] = _excess(scan.loss(place(middle)), losses, middle)
    if scan.missing and not all(map(math.isfinite, excess.values())):
        return None
    top = max(excess, key=lambda s: excess[s] if math.isfinite(excess[s]) else math.inf)
    if not math.isfinite(excess[top]):
        return Barrier(name_a, name_b, None, 0.0, None, top, _numbers(losses))
    known = [scan.known[tuple(x + 0.0 for x in place(s))] for s in (top, 0.0, 1.0)]
    error = known[0].error((top - 1, known[1]), (-top, known[2])) if 0 < top < 1 else 0.0
    largest = max(abs(k.loss) for k in known)
    height = max(0.0, excess[top])
    return Barrier(
        name_a, name_b, height, 2 * model.rounding(largest), error, top, _numbers(losses)
    )


def _numbers(losses: tuple[float, float]) -> tuple[float | None, float | None]:
    first, second = (v if math.isfinite(v) else None for v in losses)
    return first, second


def _excess(loss: float, ends: tuple[float, float], share: float) -> float:
    return loss - ((1 - share) * ends[0] + share * ends[1])
