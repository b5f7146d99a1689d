"""What a question is: typed options, a run that answers it, its result, and how the result is shown."""

import importlib
import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import answered
from curvcli.analyses.shared.missing import check_complete
from curvcli.analyses.shared.settings import parse_seconds
from curvcli.errors import UsageError, did_you_mean
from curvcli.loading.wording import expected
from curvcli.report.data import Block, Case, Headline

if TYPE_CHECKING:
    from curvcli.analyses.shared.journal import Journal
    from curvcli.analyses.shared.subject import Subject

Needs = Literal["nothing", "checkpoint", "objective"]
Targets = Literal["one", "pair", "many", "series"]
"""How many targets are taken; those of a series are checkpoints in the order of training."""


@dataclass(frozen=True)
class Option:
    """One option of a question, as its struct of options declares it."""

    name: str
    kind: Any
    """The annotation with its constraints."""
    default: Any
    help: str


@dataclass(frozen=True)
class Question:
    """A question that can be asked of a target.

    Args:
        name: of its command, and of its folder: ``run(subject, options, journal) -> Answer`` is in its ``run.py``.
        options: struct with fields ``Annotated[type, "help"]`` or ``Annotated[type, Meta(…, description="help")]``; the
            first line of its docstring is the summary.
        result: struct of the result.
        view: result -> blocks for people.
        headline: answer -> the one sentence above them.
        needs: which part of the target it looks at.
        targets: how many it looks at; those of more than one are `Subject.members`.
        cases: result -> what held and what did not, for the formats of CI systems.
        arrays: result -> its grids by name, for files of NumPy.
        about: result -> what it is about, for titles, of a question about several targets.
    """

    name: str
    options: type[msgspec.Struct]
    result: type[Any]
    view: Callable[[Any], list[Block]]
    headline: Callable[[Answer[Any]], Headline] = answered
    needs: Needs = "objective"
    targets: Targets = "one"
    cases: Callable[[Any], list[Case]] | None = None
    arrays: Callable[[Any], dict[str, Any]] | None = None
    about: Callable[[Any], str] | None = None
    named: tuple[str, ...] = ("model", "data", "loss")
    """Which parts of an objective have to be named."""
    divides: tuple[str, ...] | None = None
    """Options (``name`` or ``name=value``) that it cannot follow on weights that are divided among processes; None: it
    cannot work on such."""
    wanted: Callable[[Any], int] = lambda _: 0
    """Options -> eigenpairs that it looks for, whose vectors need room."""
    meaning: str = ""
    """How to read its figures, for somebody who sees them for the first time."""

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.description.splitlines()[0]

    @property
    def description(self) -> str:
        """What the help says above the options."""
        return inspect.getdoc(self.options) or ""

    @property
    def can_divide(self) -> bool:
        """Whether it can be asked of a network that is divided among processes."""
        return self.divides is not None or self.needs != "objective"

    def fields(self) -> list[Option]:
        """The options one by one."""
        hints = get_type_hints(self.options, include_extras=True)
        found = []
        for field in msgspec.structs.fields(self.options):
            hint = hints[field.name]
            extra = get_args(hint)[1] if get_origin(hint) is Annotated else ""
            text = extra if isinstance(extra, str) else (extra.description or "")
            kind = get_args(hint)[0] if isinstance(extra, str) and extra else hint
            default = (
                field.default_factory()
                if field.default_factory is not msgspec.NODEFAULT
                else field.default
            )
            found.append(Option(field.name, kind, default, text))
        return found

    def validate(self, values: dict[str, Any], where: str) -> dict[str, Any]:
        """Convert and check the values of some options.

        Raises:
            UsageError: an unknown option, a wrong type, or a value out of range.
        """
        known = {option.name: option for option in self.fields()}
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
                    f"{flag} {expected(str(error))}, not {value!r}", f"{where}: {known[name].help}"
                ) from None
        return checked

    def _check_divided(self, subject: "Subject", options: msgspec.Struct) -> None:
        """Whether the question can be asked of a network that is divided, where that is what is asked for."""
        if not any(s.divided for s in subject.members or [subject]):
            return
        if not self.can_divide:
            raise UsageError(
                f"{self.name} does not work on weights that are divided among processes (shard)",
                "share the data only: leave out shard, with --ranks or torchrun as before",
            )
        if whole := self._needs_whole(options):
            raise UsageError(
                f"{whole} needs vectors that one process holds as a whole, and --shard divides them",
                "leave out one of the two",
            )

    def _needs_whole(self, options: msgspec.Struct) -> str | None:
        """The option that is given and cannot be followed on a divided network."""
        for name in self.divides or ():
            option, _, value = name.partition("=")
            given = getattr(options, option)
            values = given if isinstance(given, list) else [str(given)]
            if value in values if value else given:
                return f"--{option.replace('_', '-')} {value}".strip()
        return None

    def _check_complete(self, subject: "Subject") -> None:
        """Whether model, data and loss are named, where they are needed; many targets are looked at one by one."""
        if self.needs != "objective" or self.targets == "many":
            return
        for member in subject.members or [subject]:
            if not member.made:
                check_complete(
                    self.name, member.spec, needed=self.named, series=self.targets == "series"
                )

    def ask(
        self, subject: "Subject", values: dict[str, Any], journal: "Journal", where: str
    ) -> Answer[Any]:
        """The answer, with what the target had to be noted for.

        Args:
            subject: what is inspected.
            values: the options that are not left at their defaults.
            journal: where progress goes, and what ends the run early.
            where: the options come from, for errors.

        Raises:
            CurvError: wrong input; see `curvcli.errors`.
        """
        options = self.options(**self.validate(values, where))
        self._check_complete(subject)
        self._check_divided(subject, options)
        one = self.targets == "one"  # those of several are asked other questions too
        if one and self.divides is not None and not self._needs_whole(options):
            subject.may_be_divided(self.wanted(options))
        journal.in_double = subject.in_double
        journal.limit_time(parse_seconds(getattr(options, "timeout", None)))
        subject.end_reading_when(journal.stop_reading)
        run = importlib.import_module(f"curvcli.analyses.{self.name}.run").run
        with ExitStack() as stack:
            if "torch" in sys.modules:  # otherwise nothing is set yet
                from curvcli.machine.precision import restored_precision

                stack.enter_context(restored_precision())
                subject.set_precision()
            answer: Answer[Any] = run(subject, options, journal)
            if journal.stop() is None:
                subject.look()
        answer = replace(answer, notes=list(dict.fromkeys([*subject.notes, *answer.notes])))
        return replace(answer, headline=self.headline(answer), question=self)
