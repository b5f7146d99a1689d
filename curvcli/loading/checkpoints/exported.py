"""``torch.export`` programs (``.pt2``) -> modules with named layers, after their content was checked."""

import copy
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curvcli.errors import CheckpointError
from curvcli.loading.checkpoints.program_check import check_program
from curvcli.machine.memory import not_of_memory
from curvcli.machine.private import children
from curvcli.objective.network import CALLS_RECURRENT

_RECURRENT = ("aten.lstm.", "aten.gru.", "aten.rnn_tanh.", "aten.rnn_relu.")


def load_program(path: Path, unsafe_pickle: bool) -> nn.Module:
    """The program as a module whose layers have the names of the original.

    Args:
        path: a file written by ``torch.export.save``.
        unsafe_pickle: load it unseen, whatever it runs.

    Raises:
        CheckpointError: damaged, written by a PyTorch too old or too new, or it contains what could run code.
    """
    try:
        from torch.export.pt2_archive._package import PT2ArchiveReader, load_pt2
    except ImportError:
        raise CheckpointError(
            f"{path.name} is a torch.export program, which torch {torch.__version__} does not read",
            "install torch 2.8 or later",
        ) from None
    try:
        with path.open("rb") as file, PT2ArchiveReader(file) as reader:
            check_program(reader, path.name, unsafe_pickle)
        with path.open("rb") as file, _own_warnings_off(), _plain_pickles(not unsafe_pickle):
            programs = load_pt2(file).exported_programs
        if list(programs) != ["model"]:
            raise CheckpointError(
                f"{path.name} holds {len(programs)} programs, not one",
                "export it by torch.export.save",
            )
        return Program.of(programs["model"])
    except CheckpointError:
        raise
    except Exception as error:  # the deserialiser raises anything on what it does not know
        not_of_memory(error)
        raise CheckpointError(
            f"{path.name} is not a program that torch {torch.__version__} can load: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:160]}",
            "export it again with this version of torch",
        ) from None


def _fixed_samples(program: Any) -> int | None:
    """The length of the inputs' first dimension, where the program was exported for that one only."""
    inputs = set(program.graph_signature.user_inputs)
    values = [n.meta.get("val") for n in program.graph.nodes if n.name in inputs]
    first = [v.shape[0] for v in values if isinstance(v, torch.Tensor) and v.dim() > 0]
    fixed = all(type(n) is int for n in first) and len({int(n) for n in first}) == 1
    return int(first[0]) if fixed else None


@contextmanager
def _own_warnings_off() -> Iterator[None]:
    """PyTorch's loader warns of its own way of testing for leaves, and of buffers that it reads into."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r"The given buffer is not writable", UserWarning)
        yield


@contextmanager
def _plain_pickles(forced: bool) -> Iterator[None]:
    """Where ``torch.load`` fails on plain data, PyTorch's loader lets code run: not while this is in force."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    try:
        if forced:
            os.environ[name] = "1"
        yield
    finally:
        if forced:
            os.environ.pop(name)
            os.environ.update({name: before} if before is not None else {})


class Program(nn.Module):
    """An unflattened program: it has no training mode, and checks no more than its operators do.

    Args:
        module: as `torch.export.unflatten` returns it.
        fixed_samples: samples of a batch, where the program takes no other number of them.
        exported: what was unflattened.
    """

    _program: Any
    _exported: Any
    _keywords: list[str]
    """Inputs that the program takes by name."""

    def __init__(
        self, module: nn.Module, fixed_samples: int | None = None, exported: Any = None
    ) -> None:
        super().__init__()
        self.fixed_samples = fixed_samples
        # The layers keep their names: this module stands in the place of the program's root.
        for kind in ("_parameters", "_buffers", "_modules"):
            self.__dict__[kind] = module.__dict__[kind]
        self.__dict__["_program"] = module
        self.__dict__["_exported"] = exported
        spec: Any = module.module_call_graph[0].signature.in_spec  # type: ignore[union-attr,index]
        self.__dict__["_keywords"] = list(children(spec)[1].context or ())
        graphs: list[Any] = [p.graph for p in module.modules() if hasattr(p, "graph")]
        targets = {str(node.target) for graph in graphs for node in graph.nodes}
        setattr(self, CALLS_RECURRENT, any(t.startswith(_RECURRENT) for t in targets))

    @classmethod
    def of(cls, exported: Any) -> "Program":
        """A program as torch loads it."""
        from torch.export import unflatten

        with _own_warnings_off():
            module = unflatten(exported)
        for part in module.modules():
            graph: Any = getattr(part, "graph", None)
            for node in getattr(graph, "nodes", ()):
                node.meta.pop("val", None)  # symbolic examples, which cannot be copied
        return cls(module, _fixed_samples(exported), exported)

    def placed(self, device: torch.device) -> "Program":
        """The program on a device, with what it makes inside."""
        from torch.export.passes import move_to_device_pass

        return Program.of(move_to_device_pass(self._exported, str(device)))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the program."""
        with _own_warnings_off():
            if kwargs and not args and not self._keywords:
                args = tuple(kwargs[n] for n in self._order(kwargs))
                kwargs = {}
            return self._program(*args, **kwargs)

    def _order(self, given: dict[str, Any]) -> list[str]:
        """Named inputs in the order of the program's own, or as they came where the names differ."""
        own = [node.name for node in self._program.graph.nodes if node.op == "placeholder"]
        return own if sorted(own) == sorted(given) else list(given)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Program":
        with _own_warnings_off():
            copied = copy.deepcopy(self._program, memo)
        return Program(copied, self.fixed_samples, self._exported)

    def train(self, mode: bool = True) -> "Program":
        """An exported program computes in the mode it was exported in."""
        self.training = mode
        return self
