"""What an analysis is: a function with typed options, its result, and how the result is shown."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from curvcli.errors import UsageError, did_you_mean
from curvcli.report.data import Block, Case

Needs = Literal["nothing", "checkpoint", "objective"]
Targets = Literal["one", "pair", "many", "series"]
"""How many targets are taken; those of a series are checkpoints in the order of training."""


@dataclass(frozen=True)
class Option:
    """One option of an analysis, as declared in its signature."""

    name: str
    kind: Any
    """The annotation with its constraints."""
    default: Any
    help: str


@dataclass(frozen=True)
class Analysis:
    """A question that can be asked of a target.

    Args:
        run: ``run(context, *, option=default, …) -> result``. Options are annotated
            ``Annotated[type, "help"]`` or ``Annotated[type, Meta(ge=…, description="help")]``; the first
            line of the docstring is the summary.
        view: result -> blocks for people.
        needs: which part of the target it looks at.
        targets: how many it looks at; those of more than one are `Context.members`.
        cases: result -> what held and what did not, for the formats of CI systems.
    """

    run: Callable[..., Any]
    view: Callable[[Any], list[Block]]
    needs: Needs = "objective"
    targets: Targets = "one"
    cases: Callable[[Any], list[Case]] | None = None

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.run) or "").splitlines()[0]

    @property
    def description(self) -> str:
        """The docstring without its sections for programmers."""
        return (
            (inspect.getdoc(self.run) or "")
            .split("\n\nArgs:")[0]
            .split("\n\nReturns:")[0]
            .split("\n\nRaises:")[0]
        )

    @property
    def result(self) -> type:
        """Type of the result."""
        returned = get_type_hints(self.run)["return"]
        assert isinstance(returned, type)
        return returned

    def options(self) -> list[Option]:
        """The keyword arguments of ``run``."""
        hints = get_type_hints(self.run, include_extras=True)
        found = []
        for parameter in inspect.signature(self.run).parameters.values():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            hint = hints[parameter.name]
            extra = get_args(hint)[1] if get_origin(hint) is Annotated else ""
            text = extra if isinstance(extra, str) else (extra.description or "")
            kind = get_args(hint)[0] if isinstance(extra, str) and extra else hint
            found.append(Option(parameter.name, kind, parameter.default, text))
        return found

    def validate(self, values: dict[str, Any], where: str) -> dict[str, Any]:
        """Convert and check option values.

        Raises:
            UsageError: an unknown option, a wrong type, or a value out of range.
        """
        known = {option.name: option for option in self.options()}
        checked = {}
        for name, value in values.items():
            if name not in known:
                raise UsageError(
                    f"{where} has an unknown option {name!r}.{did_you_mean(name, known)}",
                    f"known: {', '.join(known)}",
                )
            try:
                checked[name] = msgspec.convert(value, known[name].kind)
            except msgspec.ValidationError as error:
                flag = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{flag} {value!r}: {error}", f"{where}: {known[name].help}"
                ) from None
        return checked
