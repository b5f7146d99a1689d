"""The optimizers that runs are made with, fresh or from a checkpoint's state."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from curvcli.analyses.lr.command import LrOptions
from curvcli.analyses.lr.result import Kind
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import CheckpointError, UsageError, did_you_mean, some
from curvcli.loading.checkpoints.order import Gradient
from curvcli.loading.checkpoints.training import (
    Optimizer as Saved,
)
from curvcli.loading.checkpoints.training import (
    given,
    read_training,
    stability_limit,
    state_by_name,
    steps_by_name,
)
from curvcli.objective.objective import Objective

_KINDS: dict[str, Kind] = {k: k for k in ("sgd", "momentum", "adam", "adamw")}
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
        shares: of the rate, by parameter name; 0: not moved. What is not named has the whole.
    """

    kind: Kind
    settings: Mapping[str, Any]
    states: Mapping[str, Mapping[str, Any]]
    limit: float
    saved_rate: float | None
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def adaptive(self) -> bool:
        """Whether steps are divided by a diagonal."""
        return self.kind in ("adam", "adamw")

    def make(self, objective: Objective) -> Optimizer:
        """The optimizer over the objective's parameters, with copies of the state."""
        classes: dict[Kind, Any] = {"sgd": SGD, "momentum": SGD, "adam": Adam, "adamw": AdamW}
        groups: dict[float, list[Tensor]] = {}
        for name, parameter in zip(objective.names, objective.parameters, strict=True):
            groups.setdefault(self.shares.get(name, 1.0), []).append(parameter)
        optimizer: Optimizer = classes[self.kind](
            [{"params": found, "share": share} for share, found in groups.items() if share],
            lr=0.0,
            **self.settings,
        )
        for name, parameter in zip(objective.names, objective.parameters, strict=True):
            if name in self.states and self.shares.get(name, 1.0):
                optimizer.state[parameter] = {
                    key: _copied(value, key, parameter) for key, value in self.states[name].items()
                }
        return optimizer

    @property
    def plain(self) -> bool:
        """Whether steps follow the gradient as it is, in all parameters alike."""
        return not self.adaptive and all(share == 1.0 for share in self.shares.values())

    def diagonal(self, objective: Objective, optimizer: Optimizer) -> Tensor:
        """What steps are divided by, flat: √v̂ + ε of Adam, over the shares of the rate; ∞ where nothing moves.

        Where there is no second moment yet, it is that of the batches' gradients at these weights.
        """
        shares = [self.shares.get(n, 1.0) for n in objective.names]
        divided = [torch.ones_like(p) for p in objective.parameters]
        if self.adaptive:
            found = [_second_moment(optimizer, p) for p in objective.parameters]
            if any(s is None and share for s, share in zip(found, shares, strict=True)):
                found = list(objective.views(_batch_squares(objective)))
            eps = float(self.settings.get("eps", _EPS))
            divided = [
                d if s is None else s.sqrt() + eps for d, s in zip(divided, found, strict=True)
            ]
        return objective.flatten(
            [
                d / share if share else torch.full_like(d, math.inf)
                for d, share in zip(divided, shares, strict=True)
            ]
        )


def setup(subject: Subject, options: LrOptions) -> Setup:
    """What the options and the checkpoint say.

    Raises:
        UsageError: there is no such optimizer or file, or no state in it, or one of another kind than these.
    """
    asked = _KINDS.get(options.optimizer or "")
    file = None if asked else options.optimizer
    if file is not None and not Path(file).exists():
        raise UsageError(
            f"--optimizer is {file!r}, which is no optimizer and no file.{did_you_mean(file, _KINDS)}",
            f"name a file with optimizer.state_dict(), or {', '.join(_KINDS)}",
        )
    # A state has whole tensors, and of divided weights no process has any: runs begin afresh.
    path = None if subject.divided else file or subject.spec.checkpoint
    if file is not None and path is None:
        raise UsageError(
            "--optimizer with a file needs tensors that one process holds as a whole, and --shard divides them",
            f"name an optimizer that begins afresh: {', '.join(_KINDS)}",
        )
    training = read_training(Path(path), subject.spec.unsafe_pickle) if path else None
    saved = training.optimizer if training else None
    if file is not None and saved is None:
        raise UsageError(
            f"{file!r} holds no state of an optimizer",
            "pass a file with optimizer.state_dict(), or leave --optimizer out",
        )
    kind = asked or _kind_of(saved)
    own = saved if saved is not None and saved.kind == kind else None
    settings = _settings(kind, own, options.momentum)
    states: Mapping[str, Mapping[str, Any]] = {}
    if own is not None and path is not None:
        named = dict(subject.objective.model.named_parameters())
        shapes = {name: tuple(p.shape) for name, p in named.items()}
        states = state_by_name(own, shapes, Path(path), subject.notes, _gradient(subject)) or {}
    limit = stability_limit(
        kind, float(settings.get("momentum", 0.0)), float(settings.get("dampening", 0.0)),
        bool(settings.get("nesterov", False)), float(settings.get("betas", (0.0,))[0]),
    )  # fmt: skip
    assert limit is not None
    shares = _shares(saved, Path(path), subject) if saved is not None and path else {}
    return Setup(kind, settings, states, limit, own.learning_rate if own else None, shares)


def _gradient(subject: Subject) -> Gradient:
    objective = subject.objective
    return lambda: dict(zip(objective.names, objective.views(objective.gradient()), strict=True))


def _shares(saved: Saved, path: Path, subject: Subject) -> dict[str, float]:
    """Each parameter's share of the rate in the saved training; empty where that cannot be told."""
    objective = subject.objective
    shapes = {name: tuple(p.shape) for name, p in objective.model.named_parameters()}
    try:
        steps = steps_by_name(saved, shapes, path, [], _gradient(subject))
    except CheckpointError as problem:
        if given(saved) != len(shapes):
            subject.notes.append(f"all parameters are trained here: {problem.message}")
        return {}
    shares = {n: steps.rates[n] for n in objective.names}
    idle = [n for n, share in shares.items() if not share]
    if len(idle) == len(shares):
        return {}
    if idle:
        subject.notes.append(
            f"the runs leave what the optimizer in {path.name} does not move as it is: {some(idle, 3)}"
        )
    return shares


def _kind_of(saved: Saved | None) -> Kind:
    if saved is None:
        return "sgd"
    if saved.kind not in _KINDS:
        raise UsageError(
            f"the optimizer's state is that of {saved.kind}, which lr does not train with",
            f"name another by --optimizer: {', '.join(_KINDS)}",
        )
    return _KINDS[saved.kind]


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
    squares_N = torch.zeros(objective.length, dtype=objective.dtype, device=objective.device)
    for index, batch in enumerate(objective.batches):
        own_N = torch.zeros_like(squares_N)
        for piece in objective.pieces_of(batch, index, None):
            own_N += objective.gradient_of(piece)
        scale = objective.samples / batch.size
        of_batch_N = scale * objective.ranks.over_data(own_N)
        squares_N += of_batch_N.square() / len(objective.batches)
    return squares_N
