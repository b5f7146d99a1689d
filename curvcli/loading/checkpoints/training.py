"""What a training checkpoint says of its training: step, epoch, and the optimizer with its settings and state."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from curvcli.errors import CheckpointError
from curvcli.loading.checkpoints.moments import leading, relative_rate, state_dicts
from curvcli.loading.checkpoints.order import Gradient, Shapes, keys_of
from curvcli.loading.checkpoints.pickled import load_torch

OptimizerKind = Literal["sgd", "momentum", "adam", "adamw", "rmsprop", "adagrad", "other"]
STEP_KEYS = ("global_step", "step", "steps", "iteration", "iter", "num_updates")
EPOCH_KEYS = ("epoch", "epochs")
# Files that torch.save does not write.
_OTHERS = (".safetensors", ".json", ".toml", ".pt2", ".onnx")
# The tensor in each parameter's state that has the parameter's shape.
_BUFFERS = {
    "momentum": "momentum_buffer",
    "adam": "exp_avg_sq",
    "adamw": "exp_avg_sq",
    "rmsprop": "square_avg",
    "adagrad": "sum",
}
IdleCause = Literal["not-given", "no-state", "zero-rate"]


@dataclass(frozen=True)
class Optimizer:
    """The settings of an optimizer, those of its first group that moves, and its state_dict."""

    kind: OptimizerKind
    learning_rate: float | None
    momentum: float
    dampening: float
    nesterov: bool
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    state_dict: Mapping[str, Any]

    @property
    def limit(self) -> float | None:
        """λ · learning rate above which steps grow on a quadratic; λ of D⁻¹H for Adam; None where it is not known.

        2 for gradient descent, 2(1 + β)/(1 − τ) for heavy ball with dampening τ, 2(1 + β)/(1 + 2β) for Nesterov's
        momentum, 2(1 + β₁)/(1 − β₁) for averaged gradients (Cohen et al. 2021, 2022).
        """
        return stability_limit(
            self.kind, self.momentum, self.dampening, self.nesterov, self.betas[0]
        )


@dataclass(frozen=True)
class Steps:
    """Which parameters an optimizer moves."""

    rates: dict[str, float]
    """Learning rate of each in units of `Optimizer.learning_rate`; 0: it does not move it."""
    idle: dict[str, IdleCause]
    """Why: it was not given the parameter; has no state for it while it has for others; or its rate is zero."""


@dataclass(frozen=True)
class Training:
    """What stands beside the weights."""

    step: int | None
    epoch: int | None
    optimizer: Optimizer | None


def stability_limit(
    kind: OptimizerKind, momentum: float, dampening: float, nesterov: bool, beta: float
) -> float | None:
    """See `Optimizer.limit`.

    >>> stability_limit("momentum", 0.9, 0.0, False, 0.9)
    3.8000
    """
    if kind in ("adam", "adamw"):
        return 2 * (1 + beta) / (1 - beta) if beta < 1 else None
    if kind == "sgd":
        return 2.0
    if kind != "momentum" or dampening >= 1:
        return None
    return 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1 - dampening)


def read_training(path: Path, unsafe_pickle: bool = False) -> Training | None:
    """What a file written by ``torch.save`` says of its training; None where it says nothing or cannot be read."""
    if not path.is_file() or path.suffix in _OTHERS:
        return None
    try:
        content = load_torch(path, unsafe_pickle, "checkpoint")
    except CheckpointError:
        return None  # whoever reads the weights reports it
    if not isinstance(content, Mapping):
        return None
    found = Training(
        _whole(content, STEP_KEYS), _whole(content, EPOCH_KEYS), next(_optimizers(content), None)
    )
    return None if found == Training(None, None, None) else found


def state_by_name(
    optimizer: Optimizer,
    shapes: Shapes,
    path: Path,
    notes: list[str],
    gradient: Gradient | None = None,
) -> dict[str, dict[str, Any]] | None:
    """The state of each parameter, by its name; None where the optimizer keeps none.

    Raises:
        CheckpointError: the state belongs to another model.
    """
    buffer, kept = _kept(optimizer)
    if not kept:
        return None
    keys = keys_of(_groups(optimizer), kept, buffer, shapes, path, notes, gradient)
    return {name: dict(kept[key]) for name, (key, _) in keys.items() if key in kept}


def steps_by_name(
    optimizer: Optimizer,
    shapes: Shapes,
    path: Path,
    notes: list[str],
    gradient: Gradient | None = None,
) -> Steps:
    """Which parameters the optimizer moves, by what stands in its groups and its state.

    Raises:
        CheckpointError: the state belongs to another model, or it cannot be told.
    """
    buffer, kept = _kept(optimizer)
    groups = _groups(optimizer)
    keys = keys_of(groups, kept, buffer, shapes, path, notes, gradient)
    first = leading(groups)
    found = Steps({}, {})
    for name in shapes:
        cause: IdleCause | None = None
        rate = relative_rate(keys[name][1], first) if name in keys else 0.0
        if name not in keys:
            cause = "not-given"
        elif kept and keys[name][0] not in kept:
            cause = "no-state"
        elif not rate:
            cause = "zero-rate"
        found.rates[name] = 0.0 if cause else rate
        if cause:
            found.idle[name] = cause
    return found


def given(optimizer: Optimizer) -> int:
    """How many parameters an optimizer has."""
    return sum(len(group["params"]) for group in _groups(optimizer))


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    return list(optimizer.state_dict["param_groups"])


def _kept(optimizer: Optimizer) -> tuple[str, dict[Any, dict[str, Any]]]:
    """The name of the tensor that has a parameter's shape, and the states that have one."""
    buffer = _BUFFERS.get(optimizer.kind, "")
    states: Mapping[Any, Any] = optimizer.state_dict["state"]
    return buffer, {k: s for k, s in states.items() if isinstance(s.get(buffer), Tensor)}


def _whole(content: Mapping[Any, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = content.get(name)
        value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
            return int(value)
    return None


def _optimizers(content: Mapping[Any, Any]) -> Iterator[Optimizer]:
    """The optimizers whose first group has settings as torch writes them."""
    try:
        for state_dict in state_dicts(content):
            groups = state_dict["param_groups"]
            if groups and all(isinstance(group, Mapping) for group in groups):
                yield _optimizer(leading(groups), state_dict)
    except (RecursionError, TypeError, ValueError, LookupError):
        return


def _optimizer(group: Mapping[str, Any], state_dict: Mapping[str, Any]) -> Optimizer:
    rate = group.get("lr")
    betas = group.get("betas", (0.0, 0.0))
    return Optimizer(
        kind=_kind(group),
        learning_rate=float(rate) if rate is not None and math.isfinite(float(rate)) else None,
        momentum=float(group.get("momentum", 0.0)),
        dampening=float(group.get("dampening", 0.0)),
        nesterov=bool(group.get("nesterov", False)),
        betas=(float(betas[0]), float(betas[1])),
        eps=float(group.get("eps", 1e-8)),
        weight_decay=float(group.get("weight_decay", 0.0)),
        state_dict=state_dict,
    )


def _kind(group: Mapping[str, Any]) -> OptimizerKind:
    """By the settings that each of torch's optimizers has and the others lack."""
    if "betas" in group and "amsgrad" in group:
        return "adamw" if group.get("decoupled_weight_decay") else "adam"
    if "nesterov" in group:
        return "momentum" if group.get("momentum") else "sgd"
    if "centered" in group:
        return "rmsprop"
    return "adagrad" if "lr_decay" in group else "other"
