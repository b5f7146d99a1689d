"""What a loss is, as a function of model and data."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from curvcli.objective.state import STARTS, restart

IGNORED = -100
"""The label of a place that has no loss term."""

LossTerms = Callable[[nn.Module, Any], tuple[Tensor, float]]
"""(model, batch data) -> (sum of the loss terms, a scalar tensor; how many terms that are)."""


def restarted(terms: LossTerms, model: nn.Module) -> LossTerms:
    """The same loss, for which a network that keeps state starts from what it was given each time."""
    if not getattr(model, STARTS, None) or hasattr(terms, "outputs"):
        return terms  # a loss of the outputs starts it by `call_model`

    def started(model: nn.Module, data: Any) -> tuple[Tensor, float]:
        restart(model)
        return terms(model, data)

    return started


class SplitLoss(Protocol):
    """A loss that is known as a function of the model's outputs, as Gauss-Newton and Fisher need it."""

    def __call__(self, model: nn.Module, data: Any) -> tuple[Tensor, float]:
        """(sum of the loss terms, how many)."""

    def outputs(self, model: nn.Module, data: Any) -> Tensor:
        """The model's outputs."""

    def of_outputs(self, outputs: Tensor, data: Any) -> tuple[Tensor, float]:
        """(sum of the loss terms, how many) for these outputs."""

    def targets(self, data: Any) -> Any:
        """What the outputs are compared with."""
