"""The language of rules: ``hessian.top[0].value <= 1.2 * baseline``.

::

    rule     = sum ("<" | "<=" | ">" | ">=" | "==" | "!=") sum
             | path ["not"] "in" "[" constant {"," constant} "]"
    sum      = product {("+" | "-") product}
    product  = factor {("*" | "/") factor}
    factor   = ["-"] (number | text | "true" | "false" | "null" | "baseline" | path | "abs" "(" sum ")" | "(" sum ")")
    path     = analysis {"." field | "[" (place | "*" | text) "]"}

Python parses a rule, and evaluates nothing: its syntax tree becomes the tree below, or the rule is refused.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from curvcli.analyses.shared.paths import Step, written
from curvcli.errors import UsageError

Comparison = Literal["<", "<=", ">", ">=", "==", "!=", "in", "not in"]
Constant = float | int | str | bool | None


@dataclass(frozen=True)
class Value:
    """A constant."""

    value: Constant


@dataclass(frozen=True)
class Path:
    """A figure of an analysis."""

    analysis: str
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"{self.analysis}.{written(self.steps)}"


@dataclass(frozen=True)
class Baseline:
    """What the rule's own path was in the baseline."""


@dataclass(frozen=True)
class Operation:
    """``+ - * /`` of two expressions, or ``neg`` and ``abs`` of one."""

    sign: str
    operands: tuple["Expression", ...]


Expression = Value | Path | Baseline | Operation


@dataclass(frozen=True)
class Comparing:
    """A whole rule."""

    left: Expression
    sign: Comparison
    right: Expression | tuple[Constant, ...]


_CONSTANTS: dict[str, Constant] = {"true": True, "false": False, "null": None}
_COMPARISONS: dict[type[ast.cmpop], Comparison] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
    ast.In: "in", ast.NotIn: "not in",
}  # fmt: skip
_SIGNS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
# A text, or a sign whose meaning in Python is another than in a rule.
_OUTSIDE = re.compile(r"""\"[^\"]*\"|'[^']*'|(?P<all>\[\s*\*\s*\])|(?P<foreign>[:#\\;@&|^~%`])""")


def parse(text: str, constants: Mapping[str, float] | None = None) -> Comparing:
    """The tree of a rule.

    Args:
        text: the rule.
        constants: numbers that have a name here, such as ``lr`` in a training loop.

    Raises:
        UsageError: it is not of the language above; the message says where.
    """
    for match in _OUTSIDE.finditer(text):
        if match["foreign"] or "\\" in match[0]:
            raise _refused(text, f"{match[0][:1]!r} has no meaning", match.start() + 1)
    # Python has no [*]; a slice of everything takes its place, and as much room.
    python = _OUTSIDE.sub(lambda m: m[0].replace("*", ":") if m["all"] else m[0], text)
    skipped = len(text) - len(text.lstrip())
    try:
        tree = ast.parse(python.lstrip(), mode="eval").body
        return _Reader(text, skipped, {**_CONSTANTS, **(constants or {})}).rule(tree)
    except SyntaxError as error:
        deep = "too many nested" in str(error.msg)
        raise _refused(
            text,
            "it is nested too deeply" if deep else str(error.msg),
            skipped + (error.offset or 1),
        ) from None
    except (RecursionError, MemoryError):
        raise _refused(text, "it is nested too deeply", None) from None
    except ValueError as error:  # a NUL byte, a number of thousands of digits
        raise _refused(text, str(error), None) from None


def _refused(text: str, reason: str, column: int | None) -> UsageError:
    where = f" at character {column}" if column else ""
    return UsageError(
        f"the rule {text!r} is not understood: {reason}{where}",
        "write it like 'hessian.top[0].value < 50' or 'saddle.verdict != \"strict-saddle\"'",
    )


@dataclass(frozen=True)
class _Reader:
    """Turns Python's syntax tree into that of a rule."""

    text: str
    skipped: int
    """Blanks before the first character that Python has seen."""
    names: Mapping[str, Constant]

    def refused(self, reason: str, node: ast.expr) -> UsageError:
        return _refused(self.text, reason, self.skipped + node.col_offset + 1)

    def rule(self, node: ast.expr) -> Comparing:
        if not isinstance(node, ast.Compare) or len(node.ops) != 1:
            raise self.refused("a comparison (< <= > >= == != in) is expected", node)
        sign = _COMPARISONS.get(type(node.ops[0]))
        if sign is None:
            raise self.refused("a comparison (< <= > >= == != in) is expected", node)
        (right,) = node.comparators
        left = self.expression(node.left)
        if sign in ("in", "not in"):
            return Comparing(left, sign, self.constants(right))
        return Comparing(left, sign, self.expression(right))

    def constants(self, node: ast.expr) -> tuple[Constant, ...]:
        if not isinstance(node, ast.List) or not node.elts:
            raise self.refused('a list of constants is expected, as in ["a", "b"]', node)
        found = [self.expression(e) for e in node.elts]
        if not all(isinstance(value, Value) for value in found):
            raise self.refused("a list holds constants only", node)
        return tuple(value.value for value in found if isinstance(value, Value))

    def expression(self, node: ast.expr) -> Expression:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float, str):
            return Value(node.value)  # type: ignore[arg-type]
        if isinstance(node, ast.Name) and node.id in self.names:
            return Value(self.names[node.id])
        if isinstance(node, ast.Name) and node.id == "baseline":
            return Baseline()
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            return self.path(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            inner = self.expression(node.operand)
            if isinstance(inner, Value) and isinstance(inner.value, int | float):
                return Value(-inner.value)
            return Operation("neg", (inner,))
        if isinstance(node, ast.BinOp) and type(node.op) in _SIGNS:
            sides = (self.expression(node.left), self.expression(node.right))
            return Operation(_SIGNS[type(node.op)], sides)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "abs"
            and len(node.args) == 1
            and not node.keywords
        ):
            return Operation("abs", (self.expression(node.args[0]),))
        raise self.refused("a number, a text, a field, + - * / or abs() is expected", node)

    def path(self, node: ast.expr) -> Path:
        steps: list[Step] = []
        while not isinstance(node, ast.Name):
            if isinstance(node, ast.Attribute):
                steps.append(node.attr)
            elif isinstance(node, ast.Subscript):
                steps.append(self.entry(node.slice))
            else:
                raise self.refused("a field is expected: write analysis.field", node)
            node = node.value
        if not steps:
            raise self.refused(f"{node.id!r} names no field: write analysis.field", node)
        return Path(node.id, tuple(reversed(steps)))

    def entry(self, node: ast.expr) -> Step:
        if isinstance(node, ast.Slice):
            return "*"
        found = self.expression(node)
        if isinstance(found, Value) and type(found.value) in (int, str):
            return found.value  # type: ignore[return-value]
        raise self.refused('a place ([0]), a name (["fc1"]) or [*] is expected', node)


def paths(expression: Expression | tuple[Constant, ...]) -> list[Path]:
    """The paths in an expression, from left to right."""
    if isinstance(expression, Path):
        return [expression]
    if isinstance(expression, Operation):
        return [p for operand in expression.operands for p in paths(operand)]
    return []


def uses_baseline(expression: Expression | tuple[Constant, ...]) -> bool:
    """Whether ``baseline`` occurs."""
    if isinstance(expression, Operation):
        return any(map(uses_baseline, expression.operands))
    return isinstance(expression, Baseline)
