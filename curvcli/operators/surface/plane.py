"""The loss on a line or plane through θ, part by part of the data, without gradients.

Shapes: ``N`` parameters, ``P`` parts of the data.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.errors import DataError
from curvcli.objective.batch import Batch
from curvcli.objective.objective import Objective, decay
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.signals.sanity import right_answers

# Parts that sampling errors are told from, where the data can be cut.
PARTS = 16
# Fewer parts tell no error.
_FEWEST = 3


@dataclass(frozen=True)
class Sampled:
    """The loss at one point, from parts of the data."""

    sums_P: Tensor
    """Loss terms of each part, added up; float64."""
    weights_P: Tensor
    """How many loss terms."""
    right_P: Tensor
    """Right answers of each part; NaN where the loss has no such thing."""
    answers: int
    decay: float
    """(wd/2) ‖θ‖²."""

    @property
    def loss(self) -> float:
        """L."""
        return float(self.sums_P.sum() / self.weights_P.sum()) + self.decay

    @property
    def accuracy(self) -> float | None:
        """Share of right answers."""
        right = float(self.right_P.sum())
        return right / self.answers if math.isfinite(right) and self.answers else None

    def error(self, *others: tuple[float, "Sampled"]) -> float | None:
        """Standard error of L + Σ factor · L_other, all from the same parts; None with too few parts.

        Of a ratio of sums: √(n/(n−1) Σ_p (s_p − w_p s̄)²) / W.
        """
        n, whole = len(self.sums_P), self.weights_P.sum()
        if n < _FEWEST:
            return None
        sums_P = self.sums_P + sum(factor * other.sums_P for factor, other in others)
        rest_P = sums_P - self.weights_P * (sums_P.sum() / whole)
        found = float((n / (n - 1) * rest_P.square().sum()).sqrt() / whole)
        return found if math.isfinite(found) else None

    def kept(self) -> dict[str, Tensor]:
        """As tensors, for a log."""
        return {
            "sums": self.sums_P, "weights": self.weights_P, "right": self.right_P,
            "answers": torch.tensor(self.answers),
            "decay": torch.tensor(self.decay, dtype=torch.float64),
        }  # fmt: skip


def sampled(kept: Mapping[str, Tensor]) -> Sampled:
    """What `Sampled.kept` made tensors of."""
    return Sampled(
        kept["sums"], kept["weights"], kept["right"], int(kept["answers"]), float(kept["decay"])
    )


class Surface:
    """(s, t, …) -> L(θ + s Δ₁ + t Δ₂ + …); weights and buffers are restored to the bit after each call.

    Args:
        objective: L.
        directions: Δ₁, Δ₂, …
        operator: whose micro-batches and kernels are used.
        statistics: whose data running statistics of BatchNorm are gathered from at every point; None: they are kept.
    """

    def __init__(
        self,
        objective: Objective,
        directions: Sequence[Tensor],
        operator: Curvature[Any],
        statistics: Objective | None = None,
    ) -> None:
        self.objective, self.directions, self.operator = objective, directions, operator
        self._statistics = statistics
        self.parts = parts_of_data(objective)

    def __call__(self, *place: float) -> Sampled:
        """The loss there."""
        return self.operator.within_memory(lambda: self._at(place))

    def _at(self, place: Sequence[float]) -> Sampled:
        objective = self.objective
        step_N = sum(
            (t * d_N for t, d_N in zip(place, self.directions, strict=True)),
            torch.zeros_like(self.directions[0]),
        )
        with torch.no_grad(), objective.moved(step_N), self.operator.kernels.active():
            amount = decay(objective.weight_decay, objective.parameters)
            with objective.evaluation():  # new statistics are written to its copies of buffers
                if self._statistics is not None:
                    self._renew(self._statistics)
                return self._evaluated(amount)

    def _evaluated(self, amount: float) -> Sampled:
        sums_P, weights_P, right_P = torch.zeros(3, len(self.parts), dtype=torch.float64)
        answers = 0
        for i, part in enumerate(self.parts):
            for piece in part.pieces(self.operator.micro_batch or part.size):
                total, count, right, asked = _terms(self.objective, piece)
                sums_P[i] += total
                weights_P[i] += count
                right_P[i] += math.nan if right is None else right
                answers += asked
        return Sampled(sums_P, weights_P, right_P, answers, amount)

    def _renew(self, objective: Objective) -> None:
        """Running statistics from all batches, each counting alike (Izmailov et al. 2018, section 3.1)."""
        norms = running_norms(objective.model)
        with _gathering(norms):
            for batch in objective.batches:
                for piece in batch.pieces(self.operator.micro_batch or batch.size):
                    try:
                        objective.terms(objective.model, piece.data)
                    except ValueError as error:
                        if "more than 1 value" not in str(error):
                            raise
                        raise DataError(
                            "statistics of BatchNorm cannot be gathered from a batch of one sample",
                            "pass --norm-statistics keep, or a larger --batch-size",
                        ) from None


@contextmanager
def _gathering(norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """The layers normalise by the batch, and average what they see."""
    before = [(m, m.training, m.momentum) for m in norms]
    try:
        for module in norms:
            module.reset_running_stats()
            module.training, module.momentum = True, None
        yield
    finally:
        for module, training, momentum in before:
            module.training, module.momentum = training, momentum


def running_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The BatchNorm layers that normalise by running statistics."""
    return [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
        and m.running_mean is not None
        and not m.training
    ]


def parts_of_data(objective: Objective) -> list[Batch]:
    """The batches, cut into about `PARTS` pieces where there are fewer and they can be cut."""
    if not objective.splittable or len(objective.batches) >= PARTS:
        return list(objective.batches)
    size = max(1, math.ceil(objective.samples / PARTS))
    return [piece for batch in objective.batches for piece in batch.pieces(size)]


def _terms(objective: Objective, batch: Batch) -> tuple[float, float, int | None, int]:
    """(sum of the loss terms, how many, right answers, answers) of a piece."""
    terms: Any = objective.terms
    if not hasattr(terms, "outputs") or not hasattr(terms, "targets"):
        total, count = terms(objective.model, batch.data)
        return float(total), float(count), None, 0
    outputs = terms.outputs(objective.model, batch.data)
    total, count = terms.of_outputs(outputs, batch.data)
    name = str(getattr(terms, "name", ""))
    right = right_answers(name, outputs, terms.targets(batch.data))
    return float(total), float(count), *(right or (None, 0))
