"""A model, data and a loss of a running program as a target: the same as from files, without files."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn import functional as F

from curvcli.loading.data.batches import read_batches
from curvcli.loading.loss import loss_terms, terms_of
from curvcli.loading.models.forward import Forward, forward_of
from curvcli.loading.spec import TargetSpec
from curvcli.loading.target import Target
from curvcli.objective.network import copied
from curvcli.objective.terms import LossTerms

Loss = str | Callable[..., Any]

# Losses of torch whose curvature in the outputs is known by their names here.
_FUNCTIONS: dict[Any, str] = {
    F.cross_entropy: "cross_entropy",
    F.mse_loss: "mse",
    F.binary_cross_entropy_with_logits: "bce_with_logits",
    F.l1_loss: "l1",
    F.huber_loss: "huber",
    F.nll_loss: "nll",
}
_MODULES: dict[type[Any], tuple[str, tuple[str, ...]]] = {
    nn.CrossEntropyLoss: ("cross_entropy", ("weight", "ignore_index", "label_smoothing")),
    nn.MSELoss: ("mse", ()),
    nn.L1Loss: ("l1", ()),
    nn.NLLLoss: ("nll", ("weight", "ignore_index")),
}


class LiveTarget(Target):
    """Objects of a running program.

    Args:
        model: is copied; nothing that it holds is changed.
        data: a batch (tensor, tuple, dict), or several (list, iterator, DataLoader, dataset); frozen when it is read.
        loss: a name, a function of (outputs, targets), or a loss module; None: a Hugging Face model's own.
        objective: a function of (model, batch) instead.
        spec: all other settings.
        notes: receives a sentence for everything that was switched or skipped.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        loss: Loss | None,
        objective: Callable[..., Any] | None,
        spec: TargetSpec,
        notes: list[str],
    ) -> None:
        self._given, self._data, self._objective_function = model, data, objective
        name, arguments = _named(loss)
        self._function = None if name else loss
        if name:
            spec = replace(spec, loss=name, loss_args={**arguments, **spec.loss_args})
        super().__init__(spec, notes)

    def again(self) -> "LiveTarget":
        return LiveTarget(
            self._given, self._data, self._function, self._objective_function, self.spec, []
        )

    def _build(self) -> nn.Module:
        return copied(self._given)

    @cached_property
    def _raw_batches(self) -> list[Any]:
        return read_batches(
            self._data,
            batch_size=self.spec.batch_size,
            max_batches=self.spec.max_batches,
            memory=self.spec.memory_bytes,
            stop=self.stop,
        )

    @property
    def opaque(self) -> bool:
        return self._objective_function is not None

    @property
    def loss(self) -> str | None:
        """The name of the loss; ``model`` where it is a Hugging Face model's own."""
        if self.spec.loss or self._function is not None or self.opaque:
            return self.spec.loss
        return "model" if self._forward is not None else None

    @property
    def _own(self) -> bool:
        return self.loss == "model"

    @cached_property
    def _forward(self) -> Forward | None:
        # A model of transformers says by its configuration how it is called.
        known = hasattr(getattr(self._given, "config", None), "model_type")
        return forward_of(self._given, predicts_inputs=False) if known else None

    @cached_property
    def terms(self) -> LossTerms:
        """The loss as a function of model and batch."""
        if self._objective_function is not None:
            return terms_of(self._objective_function, _name(self._objective_function))
        if self._function is not None:
            return loss_terms(self._function, self.spec.loss_args)
        return super().terms

    def describe(self) -> Mapping[str, Any]:
        """The class of the model stands for its file."""
        function = self._objective_function or self._function
        return {
            **super().describe(),
            "model": type(self._given).__name__,
            "data": "in memory",
            "loss": self.loss if function is None or isinstance(function, str) else _name(function),
        }


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _named(loss: Loss | None) -> tuple[str | None, dict[str, Any]]:
    """(name, arguments) of a loss, where it is known by name; else None."""
    if loss is None or isinstance(loss, str):
        return loss, {}
    if type(loss) not in _MODULES:
        return (_FUNCTIONS.get(loss) if isinstance(loss, type(F.mse_loss)) else None), {}
    name, fields = _MODULES[type(loss)]
    if getattr(loss, "reduction", "") != "mean":
        return None, {}
    found = {field: getattr(loss, field) for field in fields}
    return name, {
        k: v.tolist() if isinstance(v, Tensor) else v for k, v in found.items() if v is not None
    }
