"""Where a Jacobian starts and where it ends: inputs, embeddings and modules of a network that is run once.

A source becomes a leaf of the graph, a target is read where it appears; everything between them is the
network's own code.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from curvcli.errors import ModelError, UsageError, did_you_mean, some
from curvcli.machine.containers import tensors_in
from curvcli.objective.batch import Batch
from curvcli.objective.calls import call_model, main_output
from curvcli.objective.network import evaluation
from curvcli.operators.autodiff.kernels import Kernels


@dataclass(frozen=True)
class Source:
    """What is varied."""

    kind: Literal["inputs", "argument", "module-input", "module-output"]
    name: str = ""
    """Of the argument or module."""

    def __str__(self) -> str:
        return {
            "inputs": "input",
            "argument": f"input {self.name}",
            "module-input": f"input of {self.name}",
            "module-output": f"output of {self.name}",
        }[self.kind]


@dataclass(frozen=True)
class Target:
    """What answers."""

    module: str | None = None
    """Its output; None: the model's."""
    output: str | None = None
    """Which of several outputs: names and indices joined by dots."""

    def __str__(self) -> str:
        where = f"output of {self.module}" if self.module else "output"
        return f"{where} [{self.output}]" if self.output else where


class Taps(NamedTuple):
    """The values at source and target of one run, connected by the autograd graph."""

    sources: list[Tensor]
    """Leaves."""
    target: Tensor
    calls: dict[str, int]
    """How often the modules concerned were called."""


@dataclass
class _Record:
    """What the hooks of one run have seen."""

    sources: list[Tensor] = field(default_factory=list)
    target: Tensor | None = None
    calls: dict[str, int] = field(default_factory=dict)


@dataclass
class Passage:
    """Runs a network from a source to a target.

    Args:
        model: in the mode it is to be run in.
        source: what becomes a leaf.
        target: what is read.
        kernels: replacements of kernels that cannot be differentiated as needed.
    """

    model: nn.Module
    source: Source = field(default_factory=lambda: Source("inputs"))
    target: Target = field(default_factory=Target)
    kernels: Kernels = field(default_factory=Kernels)

    def run(self, batch: Batch, values: list[Tensor] | None = None) -> Taps:
        """One forward pass; with ``values`` in place of what the source holds.

        Raises:
            ModelError: the model fails, or source or target do not come by.
        """
        record = _Record()
        given = iter(values) if values is not None else None

        def leaf(value: Tensor) -> Tensor:
            taken = value.detach() if given is None else next(given)
            record.sources.append(taken.clone().requires_grad_())
            # In-place operations may change what they are given, never a leaf.
            return record.sources[-1].clone()

        positional, keywords, _ = batch.data
        if self.source.kind == "inputs":
            positional, keywords = _map((positional, keywords), leaf, _varies(batch.size))
        elif self.source.kind == "argument":
            keywords = {
                **keywords,
                self.source.name: _map(keywords[self.source.name], leaf, _varies(batch.size)),
            }
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(evaluation(self.model))
            stack.enter_context(frozen(self.model))
            stack.enter_context(self.kernels.active())
            self._hook(stack, record, leaf)
            output = call_model(self.model, positional, keywords)
            if self.target.module is None:
                record.target = _floating(pick(output, self.target.output), str(self.target))
        for name in (
            self.source.name if self.source.kind.startswith("module") else None,
            self.target.module,
        ):
            if name is not None and not record.calls.get(name):
                raise ModelError(
                    f"the module {name!r} is not called on this data", "choose one that is"
                )
        if not record.sources:
            raise ModelError(
                f"nothing to differentiate with respect to: the {self.source} holds no floating-point tensor "
                f"with {batch.size} samples",
                "name a module with such an input by --wrt",
            )
        assert record.target is not None
        return Taps(record.sources, record.target, record.calls)

    def _hook(self, stack: ExitStack, record: _Record, leaf: Callable[[Tensor], Tensor]) -> None:
        if self.source.kind == "module-input":
            name = self.source.name

            def enter(_: nn.Module, args: Any, kwargs: Any) -> Any:
                return None if _again(record, name) else _first((args, kwargs), leaf)

            handle = self._module(name).register_forward_pre_hook(enter, with_kwargs=True)
            stack.callback(handle.remove)
        elif self.source.kind == "module-output":
            name = self.source.name

            def leave(_: nn.Module, __: Any, output: Any) -> Any:
                return None if _again(record, name) else _first(output, leaf)

            stack.callback(self._module(name).register_forward_hook(leave).remove)
        if self.target.module is not None:
            target = self.target.module
            counts = target != self.source.name

            def read(_: nn.Module, __: Any, output: Any) -> None:
                if counts:
                    _again(record, target)
                chosen = _floating(pick(output, self.target.output), str(self.target))
                record.target = chosen.clone()

            stack.callback(self._module(target).register_forward_hook(read).remove)

    def _module(self, name: str) -> nn.Module:
        modules: dict[str, nn.Module] = dict(self.model.named_modules())
        if name not in modules or not name:
            raise ModelError(
                f"the model has no module {name!r}.{did_you_mean(name, modules)}",
                f"its modules are {some([n for n in modules if n], 12)}",
            )
        return modules[name]


def find_source(model: nn.Module, batch: Batch, wrt: str | None) -> tuple[Source, str | None]:
    """What ``--wrt`` means for this network and data, and a note where that was found by looking.

    None and ``input``: the floating-point inputs; where all are integers, the output of the embedding that
    the first of them goes into. A module: its input (of an embedding: its output). A keyword input: that.
    """
    positional, keywords, _ = batch.data
    modules = dict(model.named_modules())
    if wrt in modules and wrt:
        found = _embedding(model, batch, wrt)
        if found is None:
            return Source("module-input", wrt), None
        return Source("module-output", wrt), (
            f"{wrt} takes integers: the Jacobian is with respect to its output"
        )
    if wrt is not None and wrt in keywords:
        return Source("argument", wrt), None
    if wrt not in (None, "input"):
        names = [*(n for n in modules if n), *keywords, "input", "parameters"]
        raise UsageError(
            f"--wrt {wrt!r} is neither a module nor an input.{did_you_mean(str(wrt), names)}",
            f"modules are {some([n for n in modules if n], 12)}; or input, or parameters",
        )
    inputs = list(tensors_in((positional, keywords)))
    varies = _varies(batch.size)
    floats = [t for t in inputs if varies(t)]
    if floats:
        held = len(inputs) - len(floats)
        note = f"{held} inputs that are not floating-point samples are held fixed" if held else None
        return Source("inputs"), note
    name = _embedding(model, batch, None)
    if name is None:
        raise ModelError(
            "the inputs are integers, and no module takes them and returns floating-point vectors",
            f"name a module whose input is to be varied by --wrt; there are {some([n for n in modules if n], 12)}",
        )
    return Source("module-output", name), (
        f"the inputs are integers: the Jacobian is with respect to their embeddings, the output of {name}"
    )


def pick(output: Any, path: str | None) -> Any:
    """The part of a structured output that a dotted path of names and indices leads to."""
    if path is None:
        return main_output(output)
    for step in path.split("."):
        if isinstance(output, Mapping) and step in output:
            output = output[step]
        elif isinstance(output, tuple | list) and step.lstrip("-").isdigit():
            if not -len(output) <= int(step) < len(output):
                raise UsageError(
                    f"--output-key {path!r}: there are {len(output)} outputs", "count them from 0"
                )
            output = output[int(step)]
        elif step.isidentifier() and not isinstance(output, Tensor) and hasattr(output, step):
            output = getattr(output, step)
        else:
            known = (
                f"its parts are {some(map(str, output), 8)}"
                if isinstance(output, Mapping)
                else f"it is a {type(output).__name__}"
            )
            raise UsageError(f"--output-key {path!r}: the output has no part {step!r}", known)
    return output


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No graph for the parameters in the meantime: it would only be kept."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in trainable:
            p.requires_grad_(False)
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)


def _embedding(model: nn.Module, batch: Batch, name: str | None) -> str | None:
    """The first innermost module that turns the model's first integer input into vectors.

    Args:
        model: the network.
        batch: what it is given.
        name: look at this module only, whatever integers it is given.
    """
    integers = [t for t in tensors_in(batch.data[:2]) if not t.is_floating_point() and t.dim()]
    found: list[str] = []

    def watch(module_name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            given = [t for t in tensors_in(args) if t.dim()]
            answers = [t for t in tensors_in(output) if t.is_floating_point()]
            takes_integers = bool(given) and not given[0].is_floating_point()
            if not (takes_integers and answers):
                return
            if name is not None or (
                integers and given[0].shape == integers[0].shape and given[0].equal(integers[0])
            ):
                found.append(module_name)

        return hook

    handles = [
        m.register_forward_hook(watch(n))
        for n, m in model.named_modules()
        if (n == name if name is not None else n and not list(m.children()))
    ]
    piece_positional, piece_keywords, _ = batch.data
    try:
        with torch.no_grad(), evaluation(model):
            call_model(model, piece_positional, piece_keywords)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _varies(size: int) -> Callable[[Tensor], bool]:
    return lambda t: t.is_floating_point() and t.dim() > 0 and t.shape[0] == size


def _map(data: Any, change: Callable[[Tensor], Tensor], choose: Callable[[Tensor], bool]) -> Any:
    """The same nested containers with the chosen tensors changed."""
    if isinstance(data, Tensor):
        return change(data) if choose(data) else data
    if isinstance(data, dict):
        return {key: _map(value, change, choose) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(_map(value, change, choose) for value in data))
    if isinstance(data, tuple | list):
        return type(data)(_map(value, change, choose) for value in data)
    return data


def _first(data: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same containers with their first floating-point tensor changed."""
    left = [1]

    def once(t: Tensor) -> bool:
        if t.is_floating_point() and left:
            left.pop()
            return True
        return False

    return _map(data, change, once)


def _again(record: _Record, name: str) -> bool:
    """Count a call; whether it is not the first."""
    record.calls[name] = record.calls.get(name, 0) + 1
    return record.calls[name] > 1


def _floating(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    kind = (
        str(value.dtype).removeprefix("torch.")
        if isinstance(value, Tensor)
        else type(value).__name__
    )
    raise ModelError(
        f"the {what} is {kind}: only floating-point tensors have a Jacobian",
        "choose another by --output-key",
    )
