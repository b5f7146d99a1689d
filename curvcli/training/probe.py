"""The fixed batch that a training loop is watched on, and the questions asked of copies of its model."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from msgspec.structs import replace
from torch import nn

from curvcli.analyses.registry import NAMES, get
from curvcli.analyses.shared.answer import Answer, envelope
from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.subject import Guess, Subject
from curvcli.errors import UsageError, did_you_mean
from curvcli.functions import spec_of
from curvcli.loading.live import LiveTarget
from curvcli.objective.network import copied
from curvcli.report.data import Envelope
from curvcli.training.plasticity import plasticity
from curvcli.training.undisturbed import (
    generators_of,
    undisturbed,
    unwrapped,
    without_foreign_hooks,
    without_global_hooks,
)

# What a question is asked for in a loop, where it costs less than by default.
_LEAN: dict[str, dict[str, Any]] = {
    "hessian": {"top": 1, "bottom": 1, "recheck": 0, "spread": 0, "tol": 1e-2}
}


class _Copy(LiveTarget):
    """Live objects whose model is copied without hooks of others."""

    hooks = False

    def _build(self) -> nn.Module:
        model = copied(self._given)
        return model if self.hooks else without_foreign_hooks(model)


class Asked(NamedTuple):
    """What was found."""

    answers: dict[str, tuple[Answer[Any], Envelope[Any]]]
    plasticity: dict[str, float]


class Probe:
    """A batch, read once, and a model.

    Args:
        model: that is trained.
        loss: a name, a function of (outputs, targets), or a loss module; None: a model's own, or ``objective``.
        data: a batch, or several; of a list, a loader or a dataset the first one, or ``max_batches``.
        objective: a function of (model, batch) instead of a loss.
        options: of the questions, by name.
        hooks: keep all hooks of the model on the copy.
        settings: of the target.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Any,
        data: Any,
        objective: Callable[..., Any] | None,
        options: dict[str, dict[str, Any]],
        hooks: bool,
        settings: dict[str, Any],
    ) -> None:
        self._model = unwrapped(model)
        self._loss, self._objective, self._hooks = loss, objective, hooks
        spec = spec_of({"max_batches": 1, **settings})
        first = next(self._model.parameters(), None)
        if "device" not in settings and first is not None:
            spec = replace(spec, device=str(first.device))
        self._spec, self.options = spec, options
        with undisturbed(
            *generators_of(data)
        ):  # a loader draws a seed and an order when it is read
            self._data = _Copy(self._model, data, loss, objective, spec, [])._raw_batches
        self._vector_N: torch.Tensor | None = None
        self._asked = 0

    def check(self, analyses: tuple[str, ...]) -> None:
        """Whether the questions and their options can be asked.

        Raises:
            UsageError: no.
        """
        for name in self.options:
            if name not in analyses:
                raise UsageError(
                    f"options for {name!r}, which is not measured",
                    f"analyses: {', '.join(analyses)}",
                )
        for name in analyses:
            if name not in NAMES:
                raise UsageError(f"there is no question {name!r}.{did_you_mean(name, NAMES)}")
            question = get(name)
            if question.targets != "one" or question.needs != "objective":
                raise UsageError(
                    f"{name!r} is no question about a model, a loss and data",
                    "name hessian, gradients, trace, …",
                )
            question.validate(self.options.get(name, {}), f"Monitor(options={{{name!r}: …}})")

    def ask(self, analyses: tuple[str, ...]) -> Asked:
        """Answers for the weights as they are now.

        Raises:
            CurvError: there is none.
        """
        with undisturbed(), nullcontext() if self._hooks else without_global_hooks():
            target = _Copy(self._model, self._data, self._loss, self._objective, self._spec, [])
            target.hooks = self._hooks
            subject = Subject(target.spec, target=target, name=type(self._model).__name__)
            self._asked += 1
            if self._vector_N is not None:
                subject.guess = Guess(self._vector_N, self._spec.seed + 7919 * self._asked)
            answers = {name: self._answer(name, subject) for name in analyses}
            has_loss = any(get(name).named == ("model", "data", "loss") for name in analyses)
            return Asked(answers, plasticity(subject.objective) if has_loss else {})

    def _answer(self, name: str, subject: Subject) -> tuple[Answer[Any], Envelope[Any]]:
        journal = Journal()
        chosen = {**_LEAN.get(name, {}), **self.options.get(name, {})}
        answer = get(name).ask(subject, chosen, journal, f"Monitor: {name}")
        if name == "hessian" and answer.vectors_KN is not None:
            # Both ends at once, as each of them is looked for again.
            self._vector_N = answer.vectors_KN.sum(0)
        return answer, envelope(name, subject, journal, answer)
