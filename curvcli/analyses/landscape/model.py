"""The quadratic model along the directions, and how far it is right."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curvcli.operators.surface.plane import Sampled

Place = tuple[float, ...]


@dataclass(frozen=True)
class Model:
    """L + Σ sᵢ gᵀΔᵢ + ½ Σ sᵢ sⱼ ΔᵢᵀHΔⱼ.

    >>> Model(1.0, (2.0,), ((4.0,),), ((1.0,),), 0.1, 0.0).at((0.5,))
    2.5
    """

    loss: float
    slopes: tuple[float, ...]
    curvatures: tuple[tuple[float, ...], ...]
    gram: tuple[tuple[float, ...], ...]
    """Inner products of the directions."""
    trust: float
    resolution: float
    """Rounding in the loss at θ."""

    def at(self, place: Sequence[float]) -> float:
        """Its value."""
        first, second = self._terms(place)
        return self.loss + first + second

    def distance(self, place: Sequence[float]) -> float:
        """‖Σ sᵢ Δᵢ‖."""
        return math.sqrt(max(0.0, _form(self.gram, place)))

    def rounding(self, loss: float) -> float:
        """In a loss of that size."""
        here = abs(self.loss)
        return self.resolution * max(1.0, abs(loss) / here if here else 1.0)

    def right(self, place: Sequence[float], loss: float) -> bool:
        """Whether its error is within ``trust`` of its terms, or rounding.

        Each term counts by its size: on lines where those of a saddle cancel, the model is not asked to be exact.
        """
        misfit = abs(loss - self.at(place))
        terms = sum(abs(s * t) for s, t in zip(self.slopes, place, strict=True))
        sizes = [[abs(h) for h in row] for row in self.curvatures]
        terms += 0.5 * _form(sizes, [abs(t) for t in place])
        return misfit <= max(self.rounding(loss), self.trust * terms)

    def nearest_wrong(self, known: Mapping[Place, Sampled]) -> Place | None:
        """The nearest point where it is wrong; NaN and Inf are."""
        wrong = [p for p, s in known.items() if not self.right(p, s.loss)]
        return min(wrong, key=lambda p: (self.distance(p), p), default=None)

    def right_to(self, known: Mapping[Place, Sampled]) -> tuple[float, float | None]:
        """(distance up to which it is right at all points, distance of the nearest where it is wrong)."""
        wrong = self.nearest_wrong(known)
        limit = math.inf if wrong is None else self.distance(wrong)
        inside = [d for p in known if (d := self.distance(p)) < limit]
        return max(inside, default=0.0), None if wrong is None else limit

    def _terms(self, place: Sequence[float]) -> tuple[float, float]:
        first = sum(s * t for s, t in zip(self.slopes, place, strict=True))
        return first, 0.5 * _form(self.curvatures, place)


def _form(matrix: Sequence[Sequence[float]], place: Sequence[float]) -> float:
    return sum(a * b * matrix[i][j] for i, a in enumerate(place) for j, b in enumerate(place))
