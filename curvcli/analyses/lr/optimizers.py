"""The optimizers that runs are made with, fresh or from a checkpoint's state."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from curvcli.analyses.lr.command import LrOptions
from curvcli.analyses.lr.result import Kind
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import UsageError
from curvcli.loading.checkpoints.training import (
    Optimizer as Saved,
)
from curvcli.loading.checkpoints.training import read_training, stability_limit, state_by_name
from curvcli.objective.objective import Objective

_BETA = 0.9
_SECOND = 0.999
_EPS = 1e-8


@dataclass(frozen=True)
class Setup:
    """An optimizer that can be made again and again.

    Args:
        kind: which.
        settings: arguments of torch's class but the rate.
        states: by parameter name; empty: fresh.
        limit: λ · rate at which its steps grow on a quadratic.
        saved_rate: in the state.
    """

    kind: Kind
    settings: Mapping[str, Any]
    states: Mapping[str, Mapping[str, Any]]
    limit: float
    saved_rate: float | None

    @property
    def adaptive(self) -> bool:
        """Whether steps are divided by a diagonal."""
        return self.kind in ("adam", "adamw")

    def make(self, objective: Objective) -> Optimizer:
        """The optimizer over the objective's parameters, with copies of the state."""
        classes: dict[Kind, Any] = {"sgd": SGD, "momentum": SGD, "adam": Adam, "adamw": AdamW}
        optimizer: Optimizer = classes[self.kind](
            list(objective.parameters), lr=0.0, **self.settings
        )
        for name, parameter in zip(objective.names, objective.parameters, strict=True):
            if name in self.states:
                optimizer.state[parameter] = {
                    key: _copied(value, key, parameter) for key, value in self.states[name].items()
                }
        return optimizer

    def diagonal(self, objective: Objective, optimizer: Optimizer) -> Tensor:
        """√v̂ + ε, flat; where there is no second moment yet, that of the batches' gradients at these weights."""
        found = [_second_moment(optimizer, p) for p in objective.parameters]
        if any(second is None for second in found):
            found = list(objective.views(_batch_squares(objective)))
        eps = float(self.settings.get("eps", _EPS))
        return objective.flatten([second.sqrt() + eps for second in found if second is not None])


def setup(subject: Subject, options: LrOptions) -> Setup:
    """What the options and the checkpoint say.

    Raises:
        UsageError: a kind was asked for that the named state is not of; or there is no state in the file.
    """
    path = options.optimizer or subject.spec.checkpoint
    training = read_training(Path(path), subject.spec.unsafe_pickle) if path else None
    saved = training.optimizer if training else None
    if options.optimizer is not None and saved is None:
        raise UsageError(
            f"{options.optimizer!r} holds no state of an optimizer",
            "pass a file with optimizer.state_dict(), or leave --optimizer out",
        )
    kind = _kind(options.optimizer_kind, saved, options.optimizer is not None)
    own = saved if saved is not None and saved.kind == kind else None
    settings = _settings(kind, own, options.momentum)
    states: Mapping[str, Mapping[str, Any]] = {}
    if own is not None and path is not None:
        named = dict(subject.objective.model.named_parameters())
        shapes = {name: tuple(p.shape) for name, p in named.items()}
        states = state_by_name(own, shapes, Path(path), subject.notes) or {}
    limit = stability_limit(
        kind, float(settings.get("momentum", 0.0)), float(settings.get("dampening", 0.0)),
        bool(settings.get("nesterov", False)), float(settings.get("betas", (0.0,))[0]),
    )  # fmt: skip
    assert limit is not None
    return Setup(kind, settings, states, limit, own.learning_rate if own else None)


def _kind(asked: Kind | None, saved: Saved | None, named: bool) -> Kind:
    known: dict[str, Kind] = {k: k for k in ("sgd", "momentum", "adam", "adamw")}
    if asked is None:
        if saved is None:
            return "sgd"
        if saved.kind not in known:
            raise UsageError(
                f"the optimizer's state is that of {saved.kind}, which lr does not train with",
                "name another by --optimizer-kind: sgd, momentum, adam or adamw",
            )
        return known[saved.kind]
    alike = {frozenset(("adam", "adamw"))}
    if named and saved is not None and saved.kind != asked and {saved.kind, asked} not in alike:
        raise UsageError(
            f"--optimizer-kind is {asked}, but the state is that of {saved.kind}",
            "leave one of them out",
        )
    return asked


def _settings(kind: Kind, saved: Saved | None, momentum: float | None) -> dict[str, Any]:
    if kind == "sgd":
        return {}
    if kind == "momentum":
        beta = momentum if momentum is not None else saved.momentum if saved else _BETA
        if saved is None:
            return {"momentum": beta}
        return {"momentum": beta, "dampening": saved.dampening, "nesterov": saved.nesterov}
    betas, eps = (saved.betas, saved.eps) if saved else ((_BETA, _SECOND), _EPS)
    found: dict[str, Any] = {
        "betas": (betas[0] if momentum is None else momentum, betas[1]), "eps": eps,
    }  # fmt: skip
    if kind == "adamw" and saved is not None:
        found["weight_decay"] = saved.weight_decay
    return found


def _copied(value: Any, key: str, parameter: nn.Parameter) -> Any:
    if not isinstance(value, Tensor):
        return value
    # Torch counts steps in a tensor on the CPU.
    return (
        value.clone() if key == "step" else value.to(parameter.device, parameter.dtype, copy=True)
    )


def _second_moment(optimizer: Optimizer, parameter: nn.Parameter) -> Tensor | None:
    state = optimizer.state.get(parameter, {})
    second: Tensor | None = state.get("exp_avg_sq")
    if second is None:
        return None
    beta = float(optimizer.param_groups[0]["betas"][1])
    return second / (1.0 - float(beta ** max(1.0, float(state["step"]))))


def _batch_squares(objective: Objective) -> Tensor:
    """Mean square of the batches' gradients: what v̂ comes to where the weights stand still."""
    squares_N = torch.zeros(objective.n, dtype=objective.dtype, device=objective.device)
    for batch in objective.batches:
        scale = objective.samples / batch.size
        squares_N += (scale * objective.gradient_of(batch)).square() / len(objective.batches)
    return squares_N
