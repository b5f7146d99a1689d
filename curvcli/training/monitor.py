"""A training loop that is watched: every so many steps, on a fixed batch, within a share of the time.

monitor = curvcli.Monitor(model, "cross_entropy", data=(x, y), every=500, optimizer=optimizer,
                          stop_if="hessian.top[0].value > 2/lr")
for x, y in loader:
    …
    optimizer.step()
    if monitor.step():
        break
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn, optim

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.trouble import explained
from curvcli.errors import UsageError
from curvcli.report.data import Envelope
from curvcli.training.condition import Condition
from curvcli.training.loggers import Logger, make_logger
from curvcli.training.micro import MicroBatches
from curvcli.training.probe import Probe
from curvcli.training.ranks import agreed, leads
from curvcli.training.series import series_of
from curvcli.training.share import Share, parse_share
from curvcli.training.undisturbed import undisturbed


class MonitorWarning(UserWarning):
    """What a monitor has to tell."""


@dataclass(frozen=True)
class Measurement:
    """What was found after one step."""

    step: int
    seconds: float
    """That it took."""
    learning_rate: float | None
    figures: dict[str, float] = field(default_factory=dict)
    """By name, as rules of `check` name them."""
    answers: dict[str, Answer[Any]] = field(default_factory=dict)
    holds: tuple[str, ...] = ()
    """Those of ``stop_if`` and ``warn_if`` that certainly hold."""
    problem: str | None = None
    """Why there are no figures."""
    products: int = 0
    """With curvature matrices, that it took."""


class Monitor:
    """Watches a model while it is trained, and never disturbs it: a copy is measured.

    Args:
        model: that is trained; one in DistributedDataParallel or torch.compile is looked into.
        loss: a name (``"cross_entropy"``), a function of (outputs, targets), a loss module; None: the model's own.
        data: the probe: one batch, or a list, loader or dataset, of which the first batch is kept (``max_batches``).
        every: optimizer steps between measurements.
        analyses: the questions that are asked.
        budget: share of the time that measurements may take, ``"2%"``; None: no limit. What does not fit is skipped.
        optimizer: has the learning rate, which is ``lr`` in conditions.
        objective: a function of (model, batch) that returns the loss, instead of ``loss``.
        stop_if: a rule; `step` returns True from when it certainly holds.
        warn_if: a rule; a `MonitorWarning` is given whenever it begins to hold.
        log: where figures go: ``"tensorboard:DIR"``, ``"csv:FILE"``, ``"jsonl:FILE"``, ``"wandb"``, ``"mlflow"``,
            ``"trackio"``, or objects with ``log(step, figures)`` and ``close()``.
        options: of the questions, ``{"hessian": {"top": 3}}``.
        hooks: call the model's hooks on the copy too, where they change what it computes.
        clock: seconds.
        settings: of the target, as for `curvcli.hessian`.

    Raises:
        UsageError: an option, a condition or a name is wrong; DataError: the probe cannot be read.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Any = None,
        *,
        data: Any,
        every: int = 500,
        analyses: Sequence[str] = ("hessian", "gradients"),
        budget: str | float | None = "2%",
        optimizer: optim.Optimizer | None = None,
        objective: Callable[..., Any] | None = None,
        stop_if: str | None = None,
        warn_if: str | None = None,
        log: str | Logger | Sequence[str | Logger] = (),
        options: dict[str, dict[str, Any]] | None = None,
        hooks: bool = False,
        clock: Callable[[], float] = time.perf_counter,
        **settings: Any,
    ) -> None:
        if every < 1:
            raise UsageError(f"every={every} is no number of steps", "every=500")
        self.every, self.analyses = every, tuple(analyses)
        self._model, self._optimizer = model, optimizer
        self._probe = Probe(model, loss, data, objective, options or {}, hooks, settings)
        self._probe.check(self.analyses)
        self._stop_if, self._warn_if = (
            Condition(text, self.analyses, optimizer is not None) if text else None
            for text in (stop_if, warn_if)
        )
        given = [log] if isinstance(log, str) or not isinstance(log, Sequence) else log
        if not leads():
            given = []
        self._loggers = [make_logger(g) if isinstance(g, str) else g for g in given]
        self._share = Share(parse_share(budget), clock)
        self._micro = MicroBatches()
        self._compares: bool | None = None
        self._failed: set[int] = set()
        self.steps = 0
        """Made so far; a run that goes on from a checkpoint sets it to those of the checkpoint."""
        self.skipped = 0
        """Measurements that the budget had no time for."""
        self.should_stop = False
        self.history: list[Measurement] = []

    def step(self) -> bool:
        """Count an optimizer step, and measure if it is time; whether the training should stop."""
        self.steps += 1
        if self.steps % self.every == 0:
            if leads():
                if self._share.allows():
                    self.measure()
                else:
                    self.skipped += 1
            device = next(self._model.parameters()).device
            self.should_stop = agreed(self.should_stop, device)
        self._micro.clear()
        self._compares = None
        return self.should_stop

    def micro_batch(self, samples: int) -> None:
        """After each backward pass of an accumulation: its gradient is compared with those of the others.

        Costs nothing but in the accumulation before a measurement that the budget has time for, where one copy of the
        gradient is kept for each.
        """
        if not leads() or (self.steps + 1) % self.every != 0:
            return
        if self._compares is None:  # of an accumulation all or none
            self._compares = self._share.allows()
        if self._compares:
            with self._share.preparation(), undisturbed(), torch.no_grad():
                self._micro.add(self._model.parameters(), samples)

    def attach(self, optimizer: optim.Optimizer) -> Any:
        """Count the steps of an optimizer by a hook; ``remove()`` of what is returned ends it.

        The loop asks `should_stop` then.
        """

        def stepped(*_: Any) -> None:
            self.step()

        return optimizer.register_step_post_hook(stepped)

    def measure(self) -> Measurement:
        """Measure now, whatever the budget says."""
        with self._share.measurement() as seconds:
            made = self._measured(seconds)
            self.history.append(made)
            self._tell(made)
        return made

    def _measured(self, seconds: Callable[[], float]) -> Measurement:
        rate = self._rate()
        envelopes: dict[str, Envelope[Any]] = {}
        answers: dict[str, Answer[Any]] = {}
        problem = None
        figures: dict[str, float] = {}
        try:
            found = self._probe.ask(self.analyses)
            for name, (answer, whole) in found.answers.items():
                answers[name] = replace(answer, vectors_KN=None)
                envelopes[name] = whole
                figures |= series_of(name, answer.result)
            figures |= found.plasticity
            with undisturbed(), torch.no_grad():
                figures |= self._micro.figures()
            holds = self._judged(envelopes, rate)
        except Exception as error:  # an instrument must not end the run that it watches
            known = explained(error)
            problem, holds = known.message if known else f"{type(error).__name__}: {error}", ()
        products = max((e.cost.matvecs for e in envelopes.values()), default=0)  # of one objective
        return Measurement(self.steps, seconds(), rate, figures, answers, holds, problem, products)

    def close(self) -> None:
        """Write what the loggers hold."""
        for logger in self._loggers:
            trouble = self._logged(logger, logger.close)
            if trouble is not None:
                _warn(trouble, 3)

    @property
    def share(self) -> float:
        """Of the time since the start that measurements took."""
        return self._share.used

    def to_frame(self) -> Any:
        """The history as a `pandas.DataFrame`, one row a measurement.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise UsageError("tables for pandas need pandas", "pip install pandas") from None
        return pd.DataFrame([_row(m) for m in self.history])

    def _rate(self) -> float | None:
        if self._optimizer is None:
            return None
        return max(float(group["lr"]) for group in self._optimizer.param_groups)

    def _judged(self, envelopes: dict[str, Envelope[Any]], rate: float | None) -> tuple[str, ...]:
        conditions = [c for c in (self._stop_if, self._warn_if) if c is not None]
        return tuple(dict.fromkeys(c.text for c in conditions if c.holds(envelopes, rate)))

    def _tell(self, made: Measurement) -> None:
        """Warnings, loggers, and whether to stop."""
        before = self.history[-2] if len(self.history) > 1 else None
        if made.problem is not None and (before is None or before.problem is None):
            _warn(f"step {made.step}: nothing was measured: {made.problem}")
        warn, stop = self._warn_if, self._stop_if
        held = before.holds if before else ()
        if warn is not None and warn.text in made.holds and warn.text not in held:
            _warn(f"step {made.step}: {warn.text}")
        if stop is not None and stop.text in made.holds:
            self.should_stop = True
        for logger in self._loggers:
            trouble = self._logged(logger, partial(logger.log, made.step, made.figures))
            if trouble is not None:
                _warn(trouble)

    def _logged(self, logger: Logger, call: Callable[[], None]) -> str | None:
        """A tracker that fails, as when its server is away, does not end the run; the first time it is told."""
        try:
            with undisturbed():
                call()
        except Exception as error:
            if id(logger) not in self._failed:
                self._failed.add(id(logger))
                name = type(logger).__name__
                return f"step {self.steps}: {name} took no figures: {type(error).__name__}: {error}"
        return None


def _warn(text: str, level: int = 5) -> None:
    """As from the line of the loop: of ``step()``, or ``level`` calls up."""
    warnings.warn(text, MonitorWarning, stacklevel=level)


def _row(made: Measurement) -> dict[str, Any]:
    return {
        "step": made.step,
        "seconds": made.seconds,
        "learning_rate": made.learning_rate,
        **made.figures,
    }
