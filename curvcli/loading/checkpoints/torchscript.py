"""TorchScript programs (``torch.jit.save``) -> modules, after their code was checked for what reaches outside."""

import contextlib
import copy
import io
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.errors import CheckpointError, ModelError, printable
from curvcli.loading.checkpoints.script_check import check_script
from curvcli.machine.memory import not_of_memory
from curvcli.objective.network import CALLS_RECURRENT


def load_torchscript(path: Path, unsafe_pickle: bool) -> nn.Module:
    """The program as a module; see `ScriptProgram`.

    Raises:
        CheckpointError: damaged, or its code reaches outside of tensors and the flag does not allow it.
    """
    try:
        if not unsafe_pickle:
            _checksums(path)
            check_script(path)
        with warnings.catch_warnings(), contextlib.redirect_stdout(_Printed()):
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
            script = torch.jit.load(str(path), map_location="cpu")
        return ScriptProgram(script.eval())
    except CheckpointError:
        raise
    except Exception as error:  # a damaged archive makes its readers raise anything
        not_of_memory(error)
        raise CheckpointError(
            f"{path.name} is not a TorchScript program that torch {torch.__version__} can load: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:160]}",
            "copy it again, or save it again by torch.jit.save",
        ) from None


def _checksums(path: Path) -> None:
    """Read every entry to its end: zipfile compares the checksum, before a C++ parser meets the bytes."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                while file.read(1 << 22):
                    pass


class _Printed(io.TextIOBase):
    """What a program prints: shown on stderr, without what could drive a terminal or a CI system."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            with contextlib.suppress(OSError, AttributeError):  # stderr may be full, or closed
                sys.stderr.write(f"the program prints: {printable(line)}\n")
        return len(text)


class ScriptProgram(nn.Module):
    """A TorchScript module whose calls do not depend on each other.

    Parameters, buffers and layers have the names they have in the program; hooks on layers are never called,
    since the interpreter does not know them. Attributes that a call assigns (a recurrent state, say) are put back
    after it: every call starts from what the file holds. What the program prints goes to stderr.

    Args:
        script: as `torch.jit.load` returns it.
    """

    script: Any
    _state: Any

    def __init__(self, script: Any) -> None:
        super().__init__()
        # Not a child of its own: its layers are the children.
        self.__dict__["script"] = script
        for kind in ("_parameters", "_buffers", "_modules"):
            self.__dict__[kind] = getattr(script, kind)
        self.__dict__["_state"] = _assigned(script)
        setattr(self, CALLS_RECURRENT, _calls_recurrent_layers(script))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the program; a tensor with one entry is passed as a number where one is expected."""
        schema = self.script.forward.schema.arguments[1:]
        kinds = {a.name: str(a.type) for a in schema}
        positional = [_as_kind(v, a) for v, a in zip(args, kinds.values(), strict=False)]
        named = {k: _as_kind(v, kinds.get(k, "")) for k, v in kwargs.items()}
        before = [(m, name, m._c.getattr(name)) for m, name in self._state]
        try:
            for module, name, value in before:
                module._c.setattr(name, _copied(value))
            plain = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
            with plain, contextlib.redirect_stdout(_Printed()):
                return self.script(*positional, *args[len(positional) :], **named)
        except RuntimeError as error:
            if self._is_double() and any(w in str(error) for w in ("dtype", "Double", "double")):
                raise ModelError(
                    "the TorchScript program has float32 constants built in: it does not compute in float64",
                    "use --dtype float32; what needs float64 needs the network's own code",
                ) from None
            raise
        finally:
            for module, name, value in before:
                module._c.setattr(name, value)

    def placed(self, device: torch.device) -> "ScriptProgram":
        """The program on a device: devices that tracing wrote into it are changed."""
        for graph in _graphs(self.script):
            for node in graph.findAllNodes("prim::Constant", True):
                if node.output().type().kind() == "DeviceObjType" and node.hasAttribute("value"):
                    node.s_("value", str(device))
        return self.to(device)

    def _is_double(self) -> bool:
        return any(p.dtype == torch.float64 for p in self.parameters())

    def __deepcopy__(self, memo: dict[int, Any]) -> "ScriptProgram":
        return ScriptProgram(copy.deepcopy(self.script, memo))

    def train(self, mode: bool = True) -> "ScriptProgram":
        """Training mode of the program and its layers."""
        self.training = mode
        self.script.train(mode)
        return self

    @property
    def stateful(self) -> list[str]:
        """Names of the attributes that are put back after each call."""
        return sorted({name for _, name in self._state})


def _assigned(script: Any) -> list[tuple[Any, str]]:
    """Modules and attributes that some method assigns; parameters and layers cannot be."""
    modules = list(script.modules())
    names = {
        node.s("name")
        for graph in _graphs(script)
        for node in graph.findAllNodes("prim::SetAttr", True)
    }
    return [
        (module, name)
        for module in modules
        for name in sorted(names)
        if module._c.hasattr(name) and name not in module._modules
    ]


def _calls_recurrent_layers(script: Any) -> bool:
    """Whether any method calls a recurrent layer of torch's."""
    return any(
        graph.findAllNodes(f"aten::{kind}", True)
        for graph in _graphs(script)
        for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")
    )


def _graphs(script: Any) -> Iterator[Any]:
    """Of every method."""
    for module in script.modules():
        for method in module._c._method_names():
            yield module._c._get_method(method).graph


def _copied(value: Any) -> Any:
    """A value that in-place operators may change."""
    if isinstance(value, Tensor):
        return value.clone()
    return copy.copy(value)


def _as_kind(value: Any, kind: str) -> Any:
    if (
        isinstance(value, Tensor)
        and value.numel() == 1
        and kind in ("int", "float", "bool", "number")
    ):
        return {"int": int, "bool": bool}.get(kind, float)(value.item())
    return value
