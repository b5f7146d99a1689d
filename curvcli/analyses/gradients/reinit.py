"""Other initialisations of the same architecture, in memory: the weights come back afterwards."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from curvcli.objective.objective import Objective

SCHEMES = ("xavier", "kaiming", "orthogonal", "lecun", "default")

# Recurrent weights are stacks of this many blocks, one for each gate, initialised one by one.
_GATES = {"LSTM": 4, "GRU": 3, "LSTMCell": 4, "GRUCell": 3}


@contextmanager
def reinitialised(objective: Objective, scheme: str, seed: int) -> Iterator[list[str]]:
    """The objective's model with fresh weights for the time being; weights and buffers come back to the bit.

    ``xavier``: normal of variance 2/(fan_in + fan_out) (Glorot & Bengio 2010). ``kaiming``: normal, 2/fan_in (He et
    al. 2015). ``lecun``: normal, 1/fan_in (LeCun et al. 1998). ``orthogonal``: Saxe et al. 2014. All of these set
    biases to zero and leave embeddings and normalisation layers to PyTorch's default, which ``default`` uses
    throughout.
    BatchNorm gets the running statistics that the fresh network has on the batches.

    Yields:
        Names of parameters that no scheme knows (bare parameters with fewer than two axes): left as they are.
    """
    model = objective.model
    parameters = list(model.parameters())
    buffers = list(model.buffers())
    saved = [t.detach().clone() for t in (*parameters, *buffers)]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            with _on_the_host(model):
                unknown = _initialise(model, scheme)
            _calibrate(objective)
        yield unknown
    finally:
        with torch.no_grad():
            for tensor, old in zip((*parameters, *buffers), saved, strict=True):
                tensor.copy_(old)


def _initialise(model: nn.Module, scheme: str) -> list[str]:
    done: set[int] = set()
    unknown: list[str] = []
    for prefix, module in model.named_modules():
        own = list(module.named_parameters(recurse=False))
        reset = getattr(module, "reset_parameters", None) or getattr(
            module, "_reset_parameters", None
        )
        fresh = [(n, p) for n, p in own if id(p) not in done]
        keeps_default = scheme == "default" or isinstance(
            module, nn.Embedding | nn.EmbeddingBag | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm
            | nn.modules.batchnorm._NormBase
        )  # fmt: skip
        before = {n: p.clone() for n, p in own if id(p) in done}
        if fresh and keeps_default and callable(reset):
            reset()
            for name, old in before.items():
                module.get_parameter(name).copy_(old)
        elif fresh and scheme == "default":
            unknown += [f"{prefix}.{n}".lstrip(".") for n, _ in fresh]
        elif fresh:
            for name, parameter in fresh:
                if parameter.dim() >= 2:
                    gates = _GATES.get(type(module).__name__, 1) if "weight_" in name else 1
                    for block in parameter.chunk(gates):
                        _draw(block, scheme)
                elif "bias" in name:
                    parameter.zero_()
                else:
                    unknown.append(f"{prefix}.{name}".lstrip("."))
        done |= {id(p) for _, p in own}
    return unknown


def _draw(weight: Tensor, scheme: str) -> None:
    field = math.prod(weight.shape[2:])
    fan_in, fan_out = weight.shape[1] * field, weight.shape[0] * field
    fresh = torch.empty(weight.shape, dtype=torch.float32)
    if scheme == "orthogonal":
        nn.init.orthogonal_(fresh)
    else:
        variance = {"xavier": 2 / (fan_in + fan_out), "kaiming": 2 / fan_in, "lecun": 1 / fan_in}
        fresh.normal_(0.0, math.sqrt(variance[scheme]))
    weight.copy_(fresh)


def _calibrate(objective: Objective) -> None:
    """Running statistics of BatchNorm for the present weights: those of the old ones mean nothing."""
    norms = [
        m
        for m in objective.model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    if not norms:
        return
    before: list[tuple[nn.modules.batchnorm._BatchNorm, float | None, bool]] = []
    for norm in norms:
        before.append((norm, norm.momentum, norm.training))
        norm.reset_running_stats()
        norm.momentum = None
        norm.training = True
    try:
        for batch in objective.batches:
            objective.terms(objective.model, batch.data)
    finally:
        for norm, momentum, training in before:
            norm.momentum, norm.training = momentum, training


@contextmanager
def _on_the_host(model: nn.Module) -> Iterator[None]:
    """Parameters are on the CPU for the time being, and get the values they have there: every device draws the same."""
    places = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]
    # A tied parameter stays one.
    copies = {id(p): nn.Parameter(p.detach().cpu(), p.requires_grad) for _, _, p in places}
    try:
        for module, name, parameter in places:
            module._parameters[name] = copies[id(parameter)]
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter
    for _, _, parameter in places:
        parameter.copy_(copies[id(parameter)])
