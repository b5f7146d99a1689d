"""``torch.export`` programs (``.pt2``) -> modules with named layers, after their content was checked.

PyTorch's loader unpickles custom objects, evaluates symbolic expressions with ``sympify``, looks up whatever function
a node names, and writes names into generated Python code. So everything that it would interpret is read first,
through the same reader, and what no exporter writes for a plain network is refused.
"""

import ast
import copy
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from curvcli.errors import CheckpointError
from curvcli.loading.checkpoints.archive import JSON_BYTES
from curvcli.objective.network import CALLS_RECURRENT

_HINT = "if you trust its origin, pass --unsafe-pickle"

# Strings that end up in generated code: dotted names.
_NAME = re.compile(r"[\w.\-]*")
# Other strings in a graph: names of types, devices, versions.
_PLAIN = re.compile(r"[\w.:,;\-+/ ]*")
_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)(\.\w+)?")
_NAMESPACES = {"aten", "prims", "prim", "quantized_decomposed", "torchvision", "higher_order"}
_HIGHER_ORDER = {
    "cond", "while_loop", "scan", "map_impl", "associative_scan", "wrap_with_set_grad_enabled", "wrap_with_autocast",
    "tag_activation_checkpoint", "flex_attention",
}  # fmt: skip
_FILES = {"from_file", "save", "load"}
_SYMBOLIC = re.compile(
    r"torch\.(sym_\w+|_sym_\w+|_check\w*)|math\.(ceil|floor|trunc|sqrt|pow)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem|lshift|rshift)"
)
_FUNCTIONS = {
    "FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv",
    "LShift", "RShift", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt", "ToFloat",
    "Identity", "Max", "Min", "Abs", "Add", "Mul", "Pow", "Integer", "Float", "Eq",
    "Ne", "Lt", "Le", "Gt", "Ge", "Not", "And", "Or",
}  # fmt: skip
_SYMBOL = re.compile(r"Symbol\('(\w+)'(?:, \w+=(?:True|False))*\)")
_EXPRESSION = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Name, ast.Load, ast.Constant, ast.operator,
    ast.unaryop, ast.cmpop,
)  # fmt: skip
_RECURRENT = ("aten.lstm.", "aten.gru.", "aten.rnn_tanh.", "aten.rnn_relu.")
_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"


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
        with path.open("rb") as file, _own_warnings_off():
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
    """PyTorch's loader warns of its own way of testing for leaves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
        yield


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
        self.__dict__["_keywords"] = list(spec.children()[1].context or ())
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


def check_program(reader: Any, name: str, unsafe_pickle: bool) -> None:
    """Raise a `CheckpointError` unless everything that the loader interprets is plain."""
    names = reader.get_file_names()
    if "archive_format" not in names or not any(n.startswith("models/") for n in names):
        raise CheckpointError(
            f"{name} is not a torch.export program of the present format",
            "export it again with torch 2.8 or later",
        )
    if any(n.startswith("data/aotinductor/") for n in names):
        raise CheckpointError(
            f"{name} contains compiled machine code (AOTInductor), which has no derivatives and is never run",
            "save the program by torch.export.save",
        )
    if unsafe_pickle:
        return
    for entry in names:
        if entry.endswith((".json", ".pt")):
            content = reader.read_bytes(entry)
            if entry.endswith(".pt"):
                _check_pickle(content, f"{name}: {entry}")
            elif len(content) > JSON_BYTES:
                raise CheckpointError(
                    f"{name}: {entry} is larger than {JSON_BYTES} bytes", "check what the file is"
                )
            elif entry.endswith("_config.json"):
                folder = _WEIGHTS if entry.startswith(_WEIGHTS) else _CONSTANTS
                _check_payload(reader, folder, content, f"{name}: {entry}")
            elif entry.startswith("models/"):
                check_graph(msgspec.json.decode(content), name)


def _check_payload(reader: Any, folder: str, config: bytes, where: str) -> None:
    for fqn, entry in msgspec.json.decode(config)["config"].items():
        _match(_NAME, fqn, where)
        place = entry["path_name"]
        if place.startswith(("custom_obj", "opaque_obj")):
            raise CheckpointError(f"{where} stores the object {fqn!r}, which could run code", _HINT)
        if entry["use_pickle"]:
            _check_pickle(reader.read_bytes(folder + place), f"{where}: {fqn}")


def _check_pickle(content: bytes, where: str) -> None:
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{where} needs to run code, or is damaged: {' '.join(str(error).split())[:120]}", _HINT
        ) from None


def check_graph(graph: Any, name: str) -> None:
    """Operators are known and touch tensors only; expressions are arithmetic; names are names.

    Args:
        graph: the decoded ``models/model.json``.
        name: of the file, for messages.

    Raises:
        CheckpointError: something else is in there.
    """
    for key, text in _strings(graph):
        if key in ("target", "as_operator"):
            _check_operator(text, name)
        elif key == "expr_str":
            check_expression(text, name)
        elif key in ("in_spec", "out_spec"):
            if "default_factory_module" in text:
                raise CheckpointError(f"{name} imports a module by its structure", _HINT)
        elif key == "nn_module_stack":
            for layer in text.split(";"):
                _match(_NAME, ",".join(layer.split(",")[1:2]), name)
        elif key in _FREE:
            pass
        else:
            _match(_PLAIN if key in _TYPES else _NAME, text, name)


# Strings that nothing interprets: shown to people, or arguments that are quoted where they appear.
_FREE = {
    "stack_trace",
    "torch_fn",
    "as_string",
    "as_strings",
    "source_fn_stack",
    "doc",
    "custom",
    "from_node",
}
_TYPES = {"type", "torch_version", "class_fqn", "device", "as_device"}


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string below ``value`` with the key it stands under; keys of tables are names too."""
    waiting: list[tuple[str, Any]] = [(key, value)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]
        elif isinstance(value, dict):
            for inner, item in value.items():
                yield "name", inner
                waiting.append((inner, item))


def _check_operator(text: str, name: str) -> None:
    found = _OPERATOR.fullmatch(text)
    if found is None:
        if _SYMBOLIC.fullmatch(text) is None:
            raise CheckpointError(
                f"{name} calls {text[:80]!r}, which is no tensor operation", _HINT
            )
        return
    namespace, operator = found[1], found[2]
    unknown = namespace not in _NAMESPACES or operator in _FILES
    if unknown or (namespace == "higher_order" and operator not in _HIGHER_ORDER):
        raise CheckpointError(f"{name} calls {text[:80]!r}, which is not allowed", _HINT)


def check_expression(text: str, name: str) -> None:
    """Arithmetic over symbols, small enough to be evaluated.

    Raises:
        CheckpointError: anything else.
    """
    try:
        plain = _SYMBOL.sub(r"\1", text.strip())
        tree = ast.parse(plain, mode="eval") if len(text) < 10_000 else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    nodes = list(ast.walk(tree)) if tree else []
    powers = sum(
        isinstance(n, ast.Pow | ast.LShift)
        or (isinstance(n, ast.Name) and n.id in ("Pow", "LShift"))
        for n in nodes
    )
    fine = bool(nodes) and powers <= 3
    for node in nodes:
        if isinstance(node, ast.Call):
            name_of = node.func.id if isinstance(node.func, ast.Name) else ""
            fine &= name_of in _FUNCTIONS and not node.keywords
            if name_of in ("Pow", "LShift"):
                fine &= len(node.args) == 2 and _small(node.args[1])
        elif isinstance(node, ast.Constant):
            fine &= type(node.value) in (int, float, bool)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
            fine &= _small(node.right)
        fine &= isinstance(node, _EXPRESSION)
    if not fine:
        raise CheckpointError(
            f"{name} contains the expression {text[:60]!r}, which is not plain arithmetic", _HINT
        )


def _small(node: ast.expr) -> bool:
    """Whether an exponent is a number of at most 64."""
    while isinstance(node, ast.UnaryOp):
        node = node.operand
    if isinstance(node, ast.Call) and len(node.args) == 1 and ast.unparse(node.func) == "Integer":
        return _small(node.args[0])
    return isinstance(node, ast.Constant) and node.value in range(65)


def _match(pattern: re.Pattern[str], text: str, name: str) -> None:
    if pattern.fullmatch(text) is None:
        raise CheckpointError(
            f"{name} contains the name {text[:60]!r}, which no exporter writes", _HINT
        )
