"""What shapes do not tell of a plain network (activation, pooling, stride, padding), found by trying it on the data."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from curvcli.errors import CurvError, ModelError
from curvcli.loading.data.batches import as_batch
from curvcli.loading.loss import loss_terms
from curvcli.loading.models.guess import Form, PlainNetwork
from curvcli.loading.spec import TargetSpec
from curvcli.machine.containers import move
from curvcli.machine.memory import not_of_memory

# Samples that forms are tried on.
_TRIED = 256
_ACTIVATIONS = ("relu", "tanh", "gelu", "silu", "sigmoid", "leaky_relu", "elu")
_POOLS, _STRIDES, _PADDINGS = (1, 2), (1, 2), ("same", 0)


def take_best_form(network: PlainNetwork, spec: TargetSpec, data: Any) -> str | None:
    """Give the network the form with the lowest loss; what is assumed, in words, or None where nothing is.

    Args:
        network: with its weights.
        spec: settings; the arguments of the model that they have are kept.
        data: a batch as the loss takes it; None without data or a named loss.

    Raises:
        ModelError: no form takes the data and gives a finite loss.
    """
    forms = _forms(network, spec.model_args)
    if len(forms) == 1:
        return None
    if data is None or spec.loss is None:
        return f"{network.form.told(network.images)}, not tried on data"
    loss = _loss_on(data, spec.loss, spec.loss_args)
    losses: dict[Form, float] = {}
    reason = ""
    for form in forms:
        network.form = form
        try:
            with torch.no_grad():
                value = loss(network.eval())
        except (CurvError, RuntimeError, ValueError, IndexError) as problem:
            not_of_memory(problem)
            reason = reason or str(problem).split("\n", 1)[0][:160]
            continue
        if math.isfinite(value):
            losses[form] = value
    if not losses:
        raise ModelError(
            f"--model auto: none of {len(forms)} plain networks with these shapes takes the data"
            + (f" ({reason})" if reason else ""),
            "name the network by --model file.py:Class",
        )
    network.form = min(losses, key=lambda form: losses[form])
    return f"{network.form.told(network.images)}, the lowest loss of {len(losses)} forms that fit"


def _loss_on(data: Any, name: str, arguments: Mapping[str, Any]) -> Callable[[nn.Module], float]:
    """The mean loss of a network on the first samples."""
    terms = loss_terms(name, arguments)
    batch = as_batch(move(data, torch.device("cpu"), torch.float32), opaque=False)
    first = next(iter(batch.pieces(_TRIED))).data

    def loss(network: nn.Module) -> float:
        total, count = terms(network, first)
        return float(total) / count

    return loss


def _forms(network: PlainNetwork, given: Mapping[str, Any]) -> list[Form]:
    """The usual forms, with what is given kept; the form of the network first."""
    usual: dict[str, tuple[Any, ...]] = {
        "activation": _ACTIVATIONS,
        "pool": _POOLS if network.images else (1,),
        "stride": _STRIDES if network.images else (1,),
        "padding": _PADDINGS if network.images else ("same",),
    }
    if not network.has_form:
        return [network.form]
    choices = [(getattr(network.form, n),) if n in given else usual[n] for n in usual]
    return [Form(*values) for values in itertools.product(*choices)]
