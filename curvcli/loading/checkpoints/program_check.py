"""Whether a ``torch.export`` program holds nothing but what an exporter writes for a plain network.

PyTorch's loader unpickles custom objects, evaluates symbolic expressions with ``sympify``, imports what the structure
of the inputs names, looks up whatever function a node names, and writes names into generated Python code. So everything
that it would interpret is read first, through the same reader, and what no exporter writes is refused.
"""

import ast
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import torch

from curvcli.errors import CheckpointError
from curvcli.loading.checkpoints.archive import JSON_BYTES, check_entries
from curvcli.machine.memory import not_of_memory

_HINT = "if you trust its origin, pass --unsafe-pickle"

# Strings that end up in generated code: dotted names.
_NAME = re.compile(r"[\w.\-]*", re.ASCII)
# Other strings in a graph: names of types, devices, versions.
_PLAIN = re.compile(r"[\w.:,;\-+/ ]*", re.ASCII)
_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)(\.\w+)?", re.ASCII)
_NAMESPACES = {"aten", "prims", "prim", "quantized_decomposed", "torchvision", "higher_order"}
_HIGHER_ORDER = {
    "cond", "while_loop", "scan", "map_impl", "associative_scan", "wrap_with_set_grad_enabled", "wrap_with_autocast",
    "tag_activation_checkpoint", "flex_attention",
}  # fmt: skip
_FILES = {"from_file", "save", "load", "_print"}
_SYMBOLIC = re.compile(
    r"torch\.(sym_\w+|_sym_\w+|_check\w*)|math\.(ceil|floor|trunc|sqrt|pow)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem|lshift|rshift)"
)
_FUNCTIONS = {
    "FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv",
    "LShift", "RShift", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt", "ToFloat",
    "Identity", "Max", "Min", "Abs", "Add", "Mul", "Pow", "Integer", "Float", "Rational", "Eq", "Ne", "Lt", "Le", "Gt",
    "Ge", "Equality", "Unequality", "LessThan", "StrictLessThan", "GreaterThan", "StrictGreaterThan", "Not", "And",
    "Or",
}  # fmt: skip
_POWERS = {"Pow", "LShift"}
_EXPRESSION = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Name, ast.Load, ast.Constant, ast.operator,
    ast.unaryop, ast.cmpop, ast.keyword,
)  # fmt: skip
_SYMBOL = re.compile(r"[A-Za-z]\w*", re.ASCII)
_DECIMAL = re.compile(r"-?[\d.]+(e[+-]?\d+)?", re.ASCII)
# Containers that inputs and outputs may be nested in; what is known of them is plain JSON.
_CONTAINERS = re.compile(
    r"builtins\.(tuple|list|dict)|collections\.(OrderedDict|deque)|transformers\.[\w.]+Output\w*",
    re.ASCII,
)
_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"
_ENTRIES = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/version|\.data/serialization_id"
    r"|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(model\.pt|model_weights_config\.json|weight_\d+)"
    r"|data/constants/(model\.pt|model_constants_config\.json|(tensor|custom_obj|opaque_obj)_\d+)"
    r"|extra/[ -~]+",
    re.ASCII,
)


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
    check_entries(names, _ENTRIES, name, _HINT)
    for entry in names:
        if entry.startswith("extra/"):
            continue  # handed over as text, which nothing interprets
        content = reader.read_bytes(entry) if entry.endswith((".json", ".pt")) else b""
        if entry.endswith(".pt"):
            _check_pickle(content, f"{name}: {entry}")
        elif len(content) > JSON_BYTES:
            raise CheckpointError(
                f"{name}: {entry} is larger than {JSON_BYTES} bytes", "check what the file is"
            )
        elif entry.endswith("_config.json"):
            folder = _WEIGHTS if entry.startswith(_WEIGHTS) else _CONSTANTS
            _check_payload(reader, folder, content, f"{name}: {entry}")
        elif entry == "models/model.json":
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
        not_of_memory(error)
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
            check_structure(text, name)
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
        tree = ast.parse(text.strip(), mode="eval") if len(text) < 10_000 else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    nodes = list(ast.walk(tree)) if tree is not None and text.isascii() else []
    powers = sum(
        isinstance(n, ast.Pow | ast.LShift) or getattr(n, "id", "") in _POWERS for n in nodes
    )
    quoted = {id(argument) for node in nodes for argument in _quoted(node)}
    fine = (
        bool(nodes)
        and powers <= 3
        and all(
            id(node) in quoted or (isinstance(node, _EXPRESSION) and _arithmetic(node))
            for node in nodes
        )
    )
    if not fine:
        raise CheckpointError(
            f"{name} contains the expression {text[:60]!r}, which is not plain arithmetic", _HINT
        )


def _quoted(node: ast.AST) -> list[ast.expr]:
    """The text in ``Symbol('s0')`` or ``Float('0.5')``, where it is a name or a number."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1):
        return []
    form = {"Symbol": _SYMBOL, "Float": _DECIMAL}.get(node.func.id)
    value = getattr(node.args[0], "value", None)
    return node.args if form and isinstance(value, str) and form.fullmatch(value) else []


def _arithmetic(node: ast.AST) -> bool:
    """Whether a node of a known kind has known content."""
    match node:
        case ast.Call(func=ast.Name("Symbol"), args=args, keywords=keywords):
            return _quoted(node) == args != [] and all(type(_value(k)) is bool for k in keywords)
        case ast.Call(func=ast.Name("Float"), keywords=keywords):
            return all(k.arg == "precision" and type(_value(k)) is int for k in keywords)
        case ast.Call(func=ast.Name(called), args=args, keywords=[]):
            return called in _FUNCTIONS and (
                called not in _POWERS or (len(args) == 2 and _small(args[1]))
            )
        case ast.Call():
            return False
        case ast.Name(id=name):
            return _SYMBOL.fullmatch(name) is not None and "__" not in name
        case ast.Constant(value=value):
            return type(value) in (int, float, bool)
        case ast.BinOp(op=ast.Pow() | ast.LShift(), right=right):
            return _small(right)
    return True


def _value(keyword: ast.keyword) -> object:
    return getattr(keyword.value, "value", None)


def check_structure(text: str, name: str) -> None:
    """Containers are plain, and what is known of them is names and numbers: no classes, no functions.

    Args:
        text: a ``TreeSpec`` as JSON.
        name: of the file, for messages.

    Raises:
        CheckpointError: something else is in there, which the loader would import.
    """
    try:
        waiting = [json.loads(text)[1]]
        while waiting:
            node = waiting.pop()
            waiting += node["children_spec"]
            context = node["context"]
            if node["type"] is None:
                fine = context is None
            elif node["type"] == "collections.namedtuple":
                fine = _NAME.fullmatch(context) is not None
            else:
                known = json.loads(context)  # keys of a dictionary, or the length of a deque
                items = known if isinstance(known, list) else [known]
                fine = _CONTAINERS.fullmatch(node["type"]) is not None and all(
                    item is None or isinstance(item, str | int | float) for item in items
                )
            if not fine:
                raise ValueError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{name} nests its inputs or outputs in {text[:80]!r}, which is not made of plain containers",
            _HINT,
        ) from None


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
