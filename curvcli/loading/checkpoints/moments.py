"""The diagonal that an adaptive optimizer divides its steps by, read from its saved state."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curvcli.errors import CheckpointError, some
from curvcli.loading.checkpoints.order import Gradient, Shapes, keys_of
from curvcli.loading.checkpoints.pickled import load_torch

# Where training programs keep the optimizer's state_dict.
_PLACES = ("optimizer", "optimizer_state_dict", "optimizer_states", "optim", "opt_state")
# Name of the second moment in the state of each algorithm.
_ALGORITHMS = {"exp_avg_sq": "Adam", "square_avg": "RMSprop", "sum": "Adagrad"}


@dataclass(frozen=True)
class Preconditioner:
    """D of an adaptive optimizer."""

    diagonal: dict[str, Tensor]
    """√v̂ + ε by parameter, float64; v̂ is corrected for its start from zero where the algorithm does so; ∞: no state."""
    rates: dict[str, float]
    """Learning rate of each parameter in units of ``learning_rate``."""
    algorithm: str
    steps: int
    learning_rate: float | None
    stability_threshold: float | None
    """Eigenvalues of D⁻¹H above this make the steps oscillate and grow."""
    missing: list[str]
    """Parameters that the optimizer was not given, or that no gradient ever reached: it does not move them."""

    @property
    def of_steps(self) -> dict[str, Tensor]:
        """What gradients are divided by in a step of ``learning_rate``: D over the rates; ∞: it does not move."""
        return {
            n: d / self.rates[n] if self.rates[n] else torch.full_like(d, math.inf)
            for n, d in self.diagonal.items()
        }


def read_preconditioner(
    path: Path,
    shapes: Shapes,
    notes: list[str],
    *,
    unsafe_pickle: bool = False,
    gradient: Gradient | None = None,
) -> Preconditioner:
    """D = √v̂ + ε from the state_dict of Adam, AdamW, RMSprop or Adagrad, alone or inside a training checkpoint.

    Parameters are known by their names where the optimizer kept them (``param_names``, or names as keys),
    otherwise by their order: one that programs use, and that alone fits shapes, groups and gradient.

    Args:
        path: a file written by ``torch.save``.
        shapes: of the model's parameters, in their order.
        notes: told which order was taken and why.
        unsafe_pickle: let the file run code.
        gradient: of the loss, where several orders fit.

    Raises:
        CheckpointError: there is no such state in it, or it belongs to another model.
    """
    content = load_torch(path, unsafe_pickle, "optimizer checkpoint")
    try:
        state_dict = next(state_dicts(content), None)
    except RecursionError:
        state_dict = None  # a container that holds itself
    if state_dict is None:
        raise CheckpointError(
            f"no optimizer state was found in {path.name}",
            f"expected optimizer.state_dict(), plain or under one of {', '.join(_PLACES)}",
        )
    try:
        return _diagonals(state_dict, shapes, path, notes, gradient)
    except (
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ZeroDivisionError,
        OverflowError,
    ) as error:
        raise CheckpointError(
            f"{path.name} holds no state that an optimizer of torch saves: {type(error).__name__}: {error}",
            "save optimizer.state_dict() again",
        ) from None


def _diagonals(
    state_dict: dict[str, Any],
    shapes: Shapes,
    path: Path,
    notes: list[str],
    gradient: Gradient | None,
) -> Preconditioner:
    """The content of an optimizer's state_dict, whose types nobody has looked at."""
    groups = list(state_dict["param_groups"])
    states: dict[Any, dict[str, Any]] = state_dict["state"]
    kind = next((k for s in states.values() for k in _ALGORITHMS if k in s), None)
    if kind is None:
        kept = sorted({k for s in states.values() for k in s})
        raise CheckpointError(
            f"{path.name} keeps no second moments: {some(kept) if kept else 'its state is empty'}",
            "use the state of Adam, AdamW, RMSprop or Adagrad after at least one step",
        )
    keys = keys_of(groups, states, kind, shapes, path, notes, gradient)
    diagonal, rates, missing, steps = {}, {}, [], 0
    first = leading(groups)
    for name, shape in shapes.items():
        key, group = keys.get(name, (None, first))
        rates[name] = relative_rate(group, first)
        state = states.get(key, {}) if name in keys else {}
        if kind not in state:
            missing.append(name)
            diagonal[name] = torch.full(shape, math.inf, dtype=torch.float64)
            continue
        if tuple(state[kind].shape) != shape:
            raise CheckpointError(
                f"{path.name}: the second moment of {name} has shape {list(state[kind].shape)}, the parameter "
                f"{list(shape)}",
                "pass the optimizer's state of this very model",
            )
        steps = max(steps, int(float(state.get("step", 0))))
        diagonal[name] = _diagonal(state, kind, group)
    rate = first.get("lr")
    return Preconditioner(
        diagonal,
        rates,
        _ALGORITHMS[kind],
        steps,
        None if rate is None else float(rate),
        _threshold(first, kind),
        missing,
    )


def _diagonal(state: Mapping[str, Any], kind: str, group: Mapping[str, Any]) -> Tensor:
    second: Tensor = (
        state.get("max_exp_avg_sq", state[kind]) if group.get("amsgrad") else state[kind]
    )
    second = second.double()
    if kind == "exp_avg_sq":
        beta = float(group.get("betas", (0.9, 0.999))[1])
        second = second / (1 - beta ** max(1.0, float(state.get("step", 1))))
    return second.sqrt() + _eps(group)


def leading(groups: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first group that moves: its settings are said to be the optimizer's."""
    return next((g for g in groups if float(g.get("lr") or 0.0) > 0), groups[0])


def relative_rate(group: Mapping[str, Any], first: Mapping[str, Any]) -> float:
    """A group's learning rate in units of the leading one's; 1 where nothing moves yet."""
    unit = float(first.get("lr") or 0.0)
    return float(group.get("lr") or 0.0) / unit if unit > 0 else 1.0


def _eps(group: Mapping[str, Any]) -> float:
    return float(group.get("eps", 1e-8))


def _threshold(group: Mapping[str, Any], kind: str) -> float | None:
    """2 (1 + β₁) / ((1 − β₁) lr): the stability limit of gradient descent with averaged gradients."""
    rate = group.get("lr")
    if rate is None or float(rate) <= 0:
        return None
    beta = float(group.get("betas", (0.0, 0.0))[0]) if kind == "exp_avg_sq" else 0.0
    return 2 * (1 + beta) / ((1 - beta) * float(rate))


def state_dicts(content: Any) -> Iterator[dict[str, Any]]:
    """The optimizers' state_dicts in a checkpoint."""
    if not isinstance(content, Mapping):
        return
    if {"state", "param_groups"} <= content.keys() and isinstance(content["state"], Mapping):
        yield dict(content)
        return
    for place in _PLACES:
        inner = content.get(place)
        for one in inner if isinstance(inner, list | tuple) else [inner]:
            yield from state_dicts(one)
