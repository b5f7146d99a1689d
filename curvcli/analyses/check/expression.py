"""The language of rules: ``hessian.top[0].value <= 1.2 * baseline``.

::

    rule     = sum ("<" | "<=" | ">" | ">=" | "==" | "!=") sum
             | path ["not"] "in" "[" constant {"," constant} "]"
    sum      = product {("+" | "-") product}
    product  = factor {("*" | "/") factor}
    factor   = ["-"] (number | text | "true" | "false" | "null" | "baseline" | path | "abs" "(" sum ")" | "(" sum ")")
    path     = analysis {"." field | "[" (place | "*" | text) "]"}

Nothing is evaluated by Python: a rule is parsed into the tree below, or refused.
"""

import re
from dataclasses import dataclass
from typing import Literal

from curvcli.analyses.shared.figures import Step, written
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


_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<text>"[^"\\]*"|'[^'\\]*')
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<sign><=|>=|==|!=|[<>+\-*/()\[\].,])
    )""",
    re.VERBOSE,
)
_CONSTANTS: dict[str, Constant] = {"true": True, "false": False, "null": None}
_COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
_DEPTH = 50


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self._tokens()
        self.place = 0
        self.depth = 0

    def _tokens(self) -> list[tuple[str, str, int]]:
        found, place = [], 0
        while self.text[place:].strip():
            match = _TOKEN.match(self.text, place)
            if match is None:
                at = place + len(self.text[place:]) - len(self.text[place:].lstrip())
                raise self.error(f"{self.text[at]!r} has no meaning", at)
            kind = str(match.lastgroup)
            found.append((kind, match[kind], match.start(kind)))
            place = match.end()
        return [*found, ("end", "", len(self.text))]

    def error(self, reason: str, at: int | None = None) -> UsageError:
        at = self.tokens[self.place][2] if at is None else at
        return UsageError(
            f"the rule {self.text!r} is not understood: {reason} at character {at + 1}",
            "write it like 'hessian.top[0].value < 50' or 'saddle.verdict != \"strict-saddle\"'",
        )

    def peek(self, *signs: str) -> bool:
        kind, text, _ = self.tokens[self.place]
        return text in signs and kind in ("sign", "name")

    def take(self) -> tuple[str, str, int]:
        token = self.tokens[self.place]
        self.place += 1
        return token

    def expect(self, sign: str) -> None:
        if not self.peek(sign):
            raise self.error(f"{sign!r} is expected")
        self.take()

    def rule(self) -> Comparing:
        left = self.sum()
        if self.peek("not", "in"):
            sign: Comparison = "in"
            if self.peek("not"):
                self.take()
                sign = "not in"
            self.expect("in")
            right: Expression | tuple[Constant, ...] = self.listed()
        elif self.peek(*_COMPARISONS):
            sign = self.take()[1]  # type: ignore[assignment]
            right = self.sum()
        else:
            raise self.error("a comparison (< <= > >= == != in) is expected")
        if self.tokens[self.place][0] != "end":
            raise self.error(f"{self.tokens[self.place][1]!r} follows the end of the rule")
        return Comparing(left, sign, right)

    def listed(self) -> tuple[Constant, ...]:
        self.expect("[")
        values = [self.constant()]
        while self.peek(","):
            self.take()
            values.append(self.constant())
        self.expect("]")
        return tuple(values)

    def constant(self) -> Constant:
        found = self.factor()
        if not isinstance(found, Value):
            raise self.error("a list holds constants only")
        return found.value

    def sum(self) -> Expression:
        left = self.product()
        while self.peek("+", "-"):
            left = Operation(self.take()[1], (left, self.product()))
        return left

    def product(self) -> Expression:
        left = self.factor()
        while self.peek("*", "/"):
            left = Operation(self.take()[1], (left, self.factor()))
        return left

    def factor(self) -> Expression:
        self.depth += 1
        if self.depth > _DEPTH:
            raise self.error("it is nested too deeply")
        found = self.inner()
        self.depth -= 1
        return found

    def inner(self) -> Expression:
        kind, text, _ = self.tokens[self.place]
        if kind == "number":
            self.take()
            return Value(int(text) if text.isdigit() else float(text))
        if kind == "text":
            self.take()
            return Value(text[1:-1])
        if self.peek("-"):
            self.take()
            inner = self.factor()
            if isinstance(inner, Value) and isinstance(inner.value, int | float):
                return Value(-inner.value)
            return Operation("neg", (inner,))
        if self.peek("("):
            self.take()
            inner = self.sum()
            self.expect(")")
            return inner
        if kind == "name":
            return self.name()
        raise self.error("a number, a text or a field is expected")

    def name(self) -> Expression:
        _, text, _ = self.take()
        if text in _CONSTANTS:
            return Value(_CONSTANTS[text])
        if text == "baseline":
            return Baseline()
        if text == "abs" and self.peek("("):
            self.take()
            inner = self.sum()
            self.expect(")")
            return Operation("abs", (inner,))
        steps: list[Step] = []
        while self.peek(".", "["):
            if self.take()[1] == ".":
                kind, field, _ = self.take()
                if kind != "name":
                    self.place -= 1
                    raise self.error("a field is expected after '.'")
                steps.append(field)
            else:
                steps.append(self.entry())
                self.expect("]")
        if not steps:
            self.place -= 1
            raise self.error(f"{text!r} names no field: write analysis.field")
        return Path(text, tuple(steps))

    def entry(self) -> Step:
        negative = self.peek("-")
        if negative:
            self.take()
        kind, text, _ = self.take()
        if kind == "number" and text.isdigit():
            return -int(text) if negative else int(text)
        if not negative and (kind == "text" or text == "*"):
            return text[1:-1] if kind == "text" else "*"
        self.place -= 1
        raise self.error('a place ([0]), a name (["fc1"]) or [*] is expected')


def parse(text: str) -> Comparing:
    """The tree of a rule.

    Raises:
        UsageError: it is not of the language above; the message says where.
    """
    return _Parser(text).rule()


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
