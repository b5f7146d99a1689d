"""Whether a TorchScript archive holds nothing but what ``torch.jit.save`` writes for a network that keeps to tensors.

TorchScript is not Python: it can compute with tensors, but it also has operators that write and map files, objects
made of native code, and methods that run while the program is loaded. So the archive is read through PyTorch's own
reader before PyTorch interprets it.
"""

import ast
import io
import pickletools
import re
from pathlib import Path

import torch

from curvcli.errors import CheckpointError
from curvcli.loading.checkpoints.archive import JSON_BYTES, check_entries

_HINT = "if you trust its origin, pass --unsafe-pickle"
_ENTRIES = re.compile(
    r"(data|constants|traced_inputs)(\.pkl|/\d+)|code/[\w/.]+\.(py|py\.debug_pkl)"
    r"|version|byteorder|\.data/version|\.data/serialization_id|extra/[ -~]+",
    re.ASCII,
)
_OUTSIDE = {
    "save", "from_file", "load", "rpc_sync", "rpc_async", "rpc_remote", "_from_file", "load_tensor", "_print",
}  # fmt: skip
_NAMESPACES = {"aten", "prim", "prims", "quantized", "torchvision", "torchaudio", "sparse"}
# Names that stand for everything there is: they are looked into, never passed on under another name.
_ROOTS = {"torch", "ops", "__torch__"}
# Characters at which Python and TorchScript would end a line, a comment or a file differently.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029\ufeff]")
_COOKIE = re.compile(r"^[ \t]*#.*?coding[:=]", re.MULTILINE)


def check_script(path: Path) -> None:
    """Raise a `CheckpointError` unless the archive holds tensors, and code that keeps to them."""
    reader = torch._C.PyTorchFileReader(str(path))
    names = reader.get_all_records()
    check_entries(names, _ENTRIES, path.name, _HINT)
    for entry in names:
        if entry.endswith(".py"):
            check_code(reader.get_record(entry), f"{path.name}: {entry}")
        elif entry.endswith(".pkl"):
            _check_objects(reader.get_record(entry), f"{path.name}: {entry}")


def _check_objects(content: bytes, where: str) -> None:
    """No object in a pickle is of a class that is written in C++."""
    for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
        if opcode.name in ("GLOBAL", "INST") and "torch.classes" in str(argument).replace(" ", "."):
            raise CheckpointError(f"{where} makes a native object ({argument})", _HINT)


def check_code(source: bytes, where: str) -> None:
    """Raise a `CheckpointError` unless TorchScript code keeps to tensors."""
    tree = _parsed(source)
    if tree is None:
        raise CheckpointError(f"{where} is not TorchScript code", "save it again by torch.jit.save")
    inner = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    for node in ast.walk(tree):
        found = None
        if isinstance(node, ast.Attribute):
            found = _outside(node, id(node) in inner)
        elif isinstance(node, ast.Name):
            bare = node.id in _ROOTS and id(node) not in inner
            found = node.id if bare or (node.id == "getattr" and id(node) not in called) else None
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            # How layers with numbers for names are read; no way around the names above.
            wanted = getattr(node.args[1], "value", None) if len(node.args) > 1 else None
            found = "getattr" if not isinstance(wanted, str) or _leads_outside(wanted) else None
        if found is not None:
            raise CheckpointError(
                f"{where} uses {found}, which reaches outside of the program", _HINT
            )


def _parsed(source: bytes) -> ast.Module | None:
    """The syntax tree; None for what Python and TorchScript might read differently."""
    try:
        text = source.decode("utf-8") if len(source) <= JSON_BYTES else "\0"
        if _CONTROL.search(text) or _COOKIE.search(text):
            return None
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _outside(node: ast.Attribute, goes_on: bool) -> str | None:
    """The attribute, where it leads outside; ``goes_on`` if an attribute of it is asked for."""
    name = ast.unparse(node) if isinstance(node.value, ast.Name | ast.Attribute) else node.attr
    native = "torch.classes" in name or (name == "__torch__.torch" and not goes_on)
    foreign = (
        isinstance(node.value, ast.Name) and node.value.id == "ops" and node.attr not in _NAMESPACES
    )
    return name if native or foreign or _leads_outside(node.attr) else None


def _leads_outside(name: str) -> bool:
    return name in _OUTSIDE or name.startswith("rpc_")
