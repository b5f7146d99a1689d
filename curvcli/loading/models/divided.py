"""Weights read from a checkpoint by the process that has the share they belong to, and by no other."""

import torch
from torch import Tensor, nn

from curvcli.errors import ModelError
from curvcli.linalg.ranks import Group
from curvcli.loading.checkpoints.checkpoint import Checkpoint
from curvcli.loading.models.model import fit_weights, set_extra_states
from curvcli.objective.sharding.shards import Read, Shards, divide


def load_divided(
    model: nn.Module, checkpoint: Checkpoint, ranks: Group
) -> tuple[Shards, list[str]]:
    """Divide ``model``, whose weights may be on the meta device, and read this process' share; notes.

    Raises:
        ModelError: the checkpoint does not fit the model, or holds float8 weights with scales.
    """
    fit = fit_weights(model, checkpoint)
    if fit.scales:
        raise ModelError(
            "float8 weights with scales are not divided among processes",
            "leave out --shard, or save the weights in bfloat16",
        )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for stored, name in fit.names.items():
            if name not in parameters:
                fit.tensors[stored].copy_(checkpoint[stored])
    set_extra_states(model, fit)
    return divide(model, ranks, _reader(parameters, fit.names, checkpoint)), fit.notes


def _reader(
    parameters: dict[str, nn.Parameter], names: dict[str, str], checkpoint: Checkpoint
) -> Read:
    """Reads parts of parameters by any of the names that each has in the model."""
    stored = {id(parameters[n]): s for s, n in names.items() if n in parameters}

    def read(name: str, first: int, last: int) -> Tensor:
        p = parameters[name]
        return checkpoint.part(stored[id(p)], first, last).to(p.dtype)

    return read
