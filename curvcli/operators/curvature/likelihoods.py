"""The likelihood behind a loss: how targets are drawn from the model, and the score of what was drawn.

A loss that is a negative log-likelihood, ℓ = −log p(y | z), has the Fisher information E_y[u uᵀ] in the outputs, with
the score u = ∂ℓ/∂z and y drawn from p(· | z), not from the data (Kunstner, Hennig & Balles, NeurIPS 2019).

A *datum* is what one draw is made for: a row of class logits (a token, a pixel, a sample), or all outputs of a sample
for losses of single elements. Shapes: ``D`` draws; others as the outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvcli.errors import LossError
from curvcli.objective.terms import SplitLoss

CLASSIFICATION = ("cross_entropy", "token_cross_entropy", "nll")
"""Losses of logits or log-probabilities over classes."""
ELEMENTWISE = ("mse", "bce_with_logits")
"""Losses of single elements."""


@dataclass(frozen=True)
class Datum:
    """Which axes of the outputs belong to one datum, and which data count."""

    axes: tuple[int, ...]
    counts: Tensor | None
    """1 where a target counts, 0 where it is ignored, with the axes of a datum of length 1; None: all count."""
    dim: int
    """Axes of the outputs."""

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """aᵀb of each datum, with the axes of a datum of length 1; the last axes are those of the outputs."""
        return (a * b).sum(tuple(x - self.dim for x in self.axes), keepdim=True)


def datum_of(loss: SplitLoss, outputs: Tensor, targets: Any) -> Datum:
    """What one datum is for this loss."""
    name = getattr(loss, "name", "")
    dim = outputs.dim()
    if name not in CLASSIFICATION:
        return Datum(tuple(range(1, dim)) or (0,), None, dim)
    labels: Tensor = targets
    if labels.is_floating_point():
        return Datum((1,), None, dim)
    along_second = dim >= 2 and tuple(labels.shape) == (outputs.shape[0], *outputs.shape[2:])
    axis = 1 if along_second and name != "token_cross_entropy" else dim - 1
    arguments: Mapping[str, Any] = getattr(loss, "arguments", {})
    counts = labels != arguments.get("ignore_index", -100)
    return Datum((axis,), counts.unsqueeze(axis).to(outputs.dtype), dim)


class Likelihood(ABC):
    """p(y | z) for given outputs z."""

    @abstractmethod
    def score(self, outputs: Tensor, uniform: Tensor, datum: Datum) -> Tensor:
        """∂ℓ/∂z for a target drawn by ``uniform`` numbers in (0, 1) shaped like the outputs."""

    @abstractmethod
    def moments(self, outputs: Tensor, a: Tensor, datum: Datum) -> tuple[Tensor, Tensor]:
        """Mean and variance of (uᵀa)² over the draws, for each datum."""


class _Categorical(Likelihood):
    """Cross-entropy: u = e_y − p, p = softmax(z)."""

    def score(self, outputs: Tensor, uniform: Tensor, datum: Datum) -> Tensor:
        p = outputs.softmax(datum.axes[0])
        return self._drawn(p, uniform, datum.axes[0]) - p

    def moments(self, outputs: Tensor, a: Tensor, datum: Datum) -> tuple[Tensor, Tensor]:
        p = outputs.softmax(datum.axes[0])
        return self._squares(p, a - datum.inner(p, a), datum)

    @staticmethod
    def _drawn(p: Tensor, uniform: Tensor, axis: int) -> Tensor:
        """e_y with y drawn from p (Gumbel-max: the largest of p_c / E_c with E exponential)."""
        y = (p / -uniform.log()).argmax(axis, keepdim=True)
        return torch.zeros_like(p).scatter_(axis, y, 1.0)

    @staticmethod
    def _squares(p: Tensor, b: Tensor, datum: Datum) -> tuple[Tensor, Tensor]:
        mean = datum.inner(p, b.square())
        return mean, (datum.inner(p, b.square().square()) - mean.square()).clamp(min=0)


class _LogProbabilities(_Categorical):
    """nll: the outputs are log p, and u = −e_y."""

    def score(self, outputs: Tensor, uniform: Tensor, datum: Datum) -> Tensor:
        return -self._drawn(outputs.exp(), uniform, datum.axes[0])

    def moments(self, outputs: Tensor, a: Tensor, datum: Datum) -> tuple[Tensor, Tensor]:
        return self._squares(outputs.exp(), a, datum)


class _Normal(Likelihood):
    """mse: (z − y)² is −log p of a normal distribution with variance ½; u = 2(z − y)."""

    def score(self, outputs: Tensor, uniform: Tensor, datum: Datum) -> Tensor:
        normal = torch.erfinv(2 * uniform - 1)  # of variance ½
        return 2 * normal

    def moments(self, outputs: Tensor, a: Tensor, datum: Datum) -> tuple[Tensor, Tensor]:
        mean = 2 * datum.inner(a, a)
        return mean, 2 * mean.square()


class _Bernoulli(Likelihood):
    """bce_with_logits: u = σ(z) − y."""

    def score(self, outputs: Tensor, uniform: Tensor, datum: Datum) -> Tensor:
        p = outputs.sigmoid()
        return p - (uniform < p).to(p.dtype)

    def moments(self, outputs: Tensor, a: Tensor, datum: Datum) -> tuple[Tensor, Tensor]:
        p = outputs.sigmoid()
        variance = p * (1 - p)
        mean = datum.inner(variance, a.square())
        fourth = datum.inner(variance * (1 - 6 * variance), a.square().square())
        return mean, (fourth + 2 * mean.square()).clamp(min=0)


_KNOWN: dict[str, Likelihood] = {
    "cross_entropy": _Categorical(),
    "token_cross_entropy": _Categorical(),
    "nll": _LogProbabilities(),
    "mse": _Normal(),
    "bce_with_logits": _Bernoulli(),
}


def likelihood_of(loss: SplitLoss) -> Likelihood:
    """The likelihood behind a loss.

    Raises:
        LossError: the loss is no known negative log-likelihood.
    """
    name = getattr(loss, "name", type(loss).__name__)
    if name not in _KNOWN:
        raise LossError(
            f"the Fisher matrix needs a likelihood, and none is known for the loss {name!r}",
            f"use --loss {', '.join(_KNOWN)}; or --matrix ggn or empirical-fisher",
        )
    return _KNOWN[name]
