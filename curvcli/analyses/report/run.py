"""`curvcli report`: every analysis that a target allows, on a model that is loaded once."""

import time
import warnings
from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from curvcli.analyses.registry import NAMES, get
from curvcli.analyses.report.command import ReportOptions
from curvcli.analyses.report.result import LeftOut, Part, ReportResult
from curvcli.analyses.shared.again import again
from curvcli.analyses.shared.answer import Answer, internal
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.settings import parse_seconds, resolve_target
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.shared.trouble import explained
from curvcli.errors import NoAnswerError, UsageError, did_you_mean

# Those that answer soon come first: what they leave of their time is for the others.
_ORDER = (
    "hessian", "saddle", "gradients", "jacobian", "backprop", "landscape", "taylor", "sharpness", "trace", "lr", "step",
    "density",
)  # fmt: skip
# Options that a page needs more than a terminal does, where the target file does not have them.
_OPTIONS: dict[str, dict[str, Any]] = {"jacobian": {"per_layer": True}}
# Of the time that is left: for what looks at all checkpoints, and for one of n analyses, as a multiple of 1/n. Most
# need less than their part, and those that need more can have it.
_OVERALL, _GENEROUS = 0.4, 2.0
_NO_TIME = "the time of --budget was over; give it more"


def run(subject: Subject, options: ReportOptions, journal: Journal) -> Answer[ReportResult]:
    """Answer `curvcli report`; see `ReportOptions`.

    Raises:
        UsageError: an unknown analysis, or a comparison of a series.
        CurvError: no analysis has an answer; by the first one.
    """
    names = _names(options.analysis)
    members = list(subject.members) or [subject]
    if options.compare is not None and len(members) > 1:
        raise UsageError(
            "--compare is for one checkpoint, not for a series",
            "name two: curvcli report A --compare B",
        )
    made = _Run(journal, parse_seconds(options.budget))
    last = members[-1].again() if len(members) > 1 else members[-1]
    sides = [last]
    overall = None
    if len(members) > 1:
        overall = made.ask("track", Subject(members=members, tables=last.tables), "all", _OVERALL)
    elif options.compare is not None:
        sides.append(_other(last, options.compare))
        pair = Subject(members=sides, tables=last.tables)
        overall = made.ask("compare", pair, "both", _OVERALL)
        sides[1].target.share_data(last.target)
    asked = [(name, side) for name in names for side in sides]
    parts = []
    for index, (name, side) in enumerate(asked):
        journal.progress(Stage(f"{name}: {side.name}", index, len(asked)))
        part = made.ask(name, side, side.name, min(1.0, _GENEROUS / (len(asked) - index)))
        if part is not None:
            parts.append(part)
            journal.item(part)
    if not parts and overall is None:
        if made.problem is not None:
            raise made.problem
        raise NoAnswerError("no analysis was answered in that time", "give --budget more")
    if subject.members:  # whose work counts
        subject.members = list(dict.fromkeys([*members, *sides]))
    if made.left_out:
        without = ", ".join(dict.fromkeys(one.analysis for one in made.left_out))
        journal.note(f"without an answer: {without}; the report says why")
    targets = [info for side in sides if (info := side.info()) is not None]
    return journal.answer(
        ReportResult(targets=targets, overall=overall, parts=parts, left_out=made.left_out)
    )


def _names(asked: list[str]) -> list[str]:
    known = [
        n for n in NAMES if get(n).targets == "one" and get(n).named and get(n).needs == "objective"
    ]
    for name in asked:
        if name not in known:
            raise UsageError(
                f"--analysis: there is no analysis {name!r}.{did_you_mean(name, known)}",
                f"known: {', '.join(known)}",
            )
    ordered = [n for n in _ORDER if n in known] + [n for n in known if n not in _ORDER]
    return list(dict.fromkeys(asked)) or ordered


def _other(first: Subject, named: str) -> Subject:
    """The checkpoint that stands beside the first one: with its settings, unless a target file gives others."""
    if named.endswith(".toml"):
        spec, tables = resolve_target(named, {}, NAMES)
        return Subject(spec, tables=tables, name=named, file=named)
    return Subject(replace(first.spec, checkpoint=named), tables=first.tables, name=named)


class _Run:
    """The analyses one after the other, within a budget.

    Args:
        journal: of the whole report.
        seconds: for all; None: no limit.
    """

    def __init__(self, journal: Journal, seconds: float | None) -> None:
        self._journal = journal
        self._end = None if seconds is None else time.monotonic() + seconds
        self.left_out: list[LeftOut] = []
        self._opened: list[Subject] = []
        self.problem: BaseException | None = None
        """The first one."""

    def ask(self, name: str, subject: Subject, target: str, portion: float) -> Part | None:
        """The answer of one analysis, in a portion of the time that is left; None: it has none, which is noted."""
        if self._journal.stop() is not None:
            self._without(name, target, "the run ended before it")
            return None
        self._open(subject)
        share = None
        if self._end is not None:
            share = portion * (self._end - time.monotonic())
            if self._journal.agreed(share <= 0):
                self._without(name, target, _NO_TIME)
                return None
        began = time.monotonic()
        part = self._journal.part(f"{name}: ", share)
        known = subject.tables.get(name, {})
        more = {k: v for k, v in _OPTIONS.get(name, {}).items() if k not in known}
        answer: Answer[Any] | None = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer = get(name).ask(
                    subject, {**more, **known}, part, f"[{name}] in the target file"
                )
        except KeyboardInterrupt:
            raise
        except (Exception, SystemExit) as problem:
            # One analysis that fails must not hide what the others say.
            told = explained(problem)
            self.problem = self.problem or told or problem
            if part.stop() is not None:
                self._without(name, target, _NO_TIME)
            else:
                reason = told.message if told else internal(problem).message
                self.left_out.append(LeftOut(name, target, reason))
            return None
        if not answer.complete:
            self._journal.cut_short()
        self._journal.adopt(answer.findings, name)
        return Part(
            analysis=name,
            target=target,
            command=_command(name, subject, more),
            seconds=round(time.monotonic() - began, 3),
            complete=answer.complete,
            verdict=answer.headline,
            findings=answer.findings,
            notes=answer.notes,
            result=answer.result,
        )

    def _open(self, subject: Subject) -> None:
        """Read model and data before the time is shared out: half of the whole budget, not of one analysis', is theirs.

        What goes wrong is said by the analyses that need it.
        """
        if (
            subject.members or subject in self._opened
        ):  # several are looked at one by one, by the analysis itself
            return
        self._opened.append(subject)
        left = None if self._end is None else self._end - time.monotonic()
        subject.end_reading_when(self._journal.part("", left).stop_reading)
        with warnings.catch_warnings(), suppress(Exception):
            warnings.simplefilter("ignore")
            subject.load()

    def _without(self, name: str, target: str, reason: str) -> None:
        self._journal.cut_short()
        self.left_out.append(LeftOut(name, target, reason))


def _command(name: str, subject: Subject, options: dict[str, Any]) -> str | None:
    """What asks the question again; of several targets the first one's settings hold for all."""
    if not subject.members:
        return again(name, subject, options)
    first, *rest = subject.members
    return again(name, first, options, [m.name for m in rest])
