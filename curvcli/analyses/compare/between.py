"""Two models of one architecture: the loss on the line between them, and what moved."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from curvcli.errors import ModelError, some
from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.linalg.vectors import double
from curvcli.objective.objective import Objective


class Moved(NamedTuple):
    """How far one parameter moved."""

    name: str
    distance: float
    before: float
    """‖A‖."""
    cosine: float | None


def check_alike(a: Objective, b: Objective) -> None:
    """Whether both have the same parameters.

    Raises:
        ModelError: names or shapes differ.
    """
    shapes = [
        {held.name: tuple(held.shape) for held in o.divided}
        or {n: tuple(p.shape) for n, p in o.model.named_parameters()}
        for o in (a, b)
    ]
    differing = [n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n)]
    if differing:
        raise ModelError(
            f"the checkpoints are of different models: {some(differing, 3)} differ",
            "compare checkpoints of one architecture",
        )


class Between:
    """α -> L((1 − α) A + α B), running statistics of normalisation included.

    Args:
        a: L at A; its model is moved and restored.
        b: the model at B.
    """

    def __init__(self, a: Objective, b: nn.Module) -> None:
        self._objective = a
        own = {**dict(a.model.named_parameters()), **dict(a.model.named_buffers())}
        other = {**dict(b.named_parameters()), **dict(b.named_buffers())}
        self._pairs = [
            (tensor, tensor.data, other[name].data)
            for name, tensor in own.items()
            if tensor.is_floating_point() and name in other
        ]
        self.known: dict[float, float] = {}

    @contextmanager
    def _at(self, position: float) -> Iterator[None]:
        try:
            for tensor, a, b in self._pairs:
                tensor.data = a + position * (b - a) if position < 1 else b
            yield
        finally:
            for tensor, a, _ in self._pairs:
                tensor.data = a

    def __call__(self, position: float) -> float:
        """The loss there."""
        if position not in self.known:
            with self._at(position):
                self.known[position] = self._objective.value()
        return self.known[position]

    def excess(self, position: float) -> float:
        """How far the loss lies above the straight line between its ends."""
        return self(position) - ((1 - position) * self(0.0) + position * self(1.0))

    def highest(self, points: int, refinements: int = 12) -> float:
        """Where the excess is largest: on a grid, then by golden sections around its best point."""
        grid = [i / (points - 1) for i in range(points)]
        scores = [self.excess(x) for x in grid]
        if not all(map(math.isfinite, scores)):
            return grid[next(i for i, s in enumerate(scores) if not math.isfinite(s))]
        best = max(range(points), key=lambda i: scores[i])
        low, high = grid[max(0, best - 1)], grid[min(points - 1, best + 1)]
        golden = (math.sqrt(5) - 1) / 2
        left, right = high - golden * (high - low), low + golden * (high - low)
        for _ in range(refinements):
            if self.excess(left) >= self.excess(right):
                high, right = right, left
                left = high - golden * (high - low)
            else:
                low, left = left, right
                right = low + golden * (high - low)
        return max(self.known, key=self.excess)

    def resolution(self) -> float:
        """Below this a difference of losses is rounding: 32 eps of the largest loss seen."""
        finite = [abs(v) for v in self.known.values() if math.isfinite(v)]
        return 32 * torch.finfo(self._objective.dtype).eps * max(finite, default=0.0)


def moved(a: Mapping[str, Tensor], b: Mapping[str, Tensor], ranks: Ranks = ALONE) -> list[Moved]:
    """Every parameter's way from A to B, the largest in proportion to ‖A‖ first.

    Args:
        a: the parameters by name.
        b: the same.
        ranks: the processes that hold parts of them.
    """
    found = []
    for name, parameter in a.items():
        x_N, y_N = (double(p.detach()).reshape(-1) for p in (parameter, b[name]))
        norms = float(ranks.norm(x_N)), float(ranks.norm(y_N))
        cosine = float(ranks.dot(x_N, y_N)) / (norms[0] * norms[1]) if all(norms) else None
        found.append(Moved(name, float(ranks.norm(y_N - x_N)), norms[0], cosine))
    return sorted(
        found, key=lambda m: -(m.distance / m.before if m.before else math.inf * m.distance)
        if m.distance else 0.0,
    )  # fmt: skip


def principal_cosines(a_KN: Tensor, b_KN: Tensor, ranks: Ranks = ALONE) -> list[float]:
    """Cosines of the principal angles between the spans of two orthonormal sets (Björck & Golub 1973)."""
    products_KK = ranks.inner(double(a_KN), double(b_KN))
    return [min(1.0, float(s)) for s in torch.linalg.svdvals(products_KK)]
