"""Where a run says how far it has come and what it met on the way, and asks whether to go on."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from msgspec.structs import replace

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.rules import Rule
from curvcli.report.data import Finding

Reason = Literal["timeout", "interrupted"]
R = TypeVar("R")
# The stronger ones last: of what several processes want, the strongest happens.
_REASONS: tuple[Reason | None, ...] = (None, "timeout", "interrupted")

# So many names are listed one by one.
_NAMED = 8


@dataclass
class _Said:
    """What several parts of a run said alike."""

    names: list[str] = field(default_factory=list)
    note: str | None = None
    worst: Finding | None = None
    finding: Finding | None = None


def _listed(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


class TimeIsUpError(Exception):
    """A run that ends between two products; what is known by then is shown.

    Args:
        reason: why.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Stage(NamedTuple):
    """How far a run has come."""

    what: str
    done: int
    expected: int | None
    detail: str = ""


class Journal:
    """Notes, findings and progress of one run.

    Args:
        progress: told how far the run has come.
        interrupted: asked often; True ends the run with what is known so far.
        item: called with each part of the answer as soon as that part is known.
        deadline: seconds after which the run ends, whatever its options say.
        agree: the largest of a number over the processes of the run, which end together; None: there is one only.
    """

    def __init__(
        self,
        *,
        progress: Callable[[Stage], None] = lambda _: None,
        interrupted: Callable[[], bool] = lambda: False,
        item: Callable[[Any], None] = lambda _: None,
        deadline: float | None = None,
        agree: Callable[[int], int] | None = None,
    ) -> None:
        self.progress = progress
        self.interrupted = interrupted
        self.item = item
        self._alone = agree is None
        self._agree = agree or (lambda own: own)
        self.notes: list[str] = []
        self.findings: list[Finding] = []
        self.complete = True
        self.in_double: Callable[[], bool] = lambda: False
        """Whether figures are in float64 already, where no finer type can be advised."""
        self._said: dict[str, _Said] = {}
        self._began = time.monotonic()
        self._latest = None if deadline is None else self._began + deadline

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    def limit_time(self, seconds: float | None) -> None:
        """End the run with what is known ``seconds`` after it began, or earlier where that was said before."""
        if seconds is not None:
            asked = self._began + seconds
            self._latest = asked if self._latest is None else min(asked, self._latest)

    def agreed(self, own: bool) -> bool:
        """Whether that holds for any process of the run: what hangs on a clock must be the same in all."""
        return bool(self._agree(int(own)))

    def stop(self) -> Reason | None:
        """Why to end the run now, if there is a reason; what one of several processes wants, all do."""
        return _REASONS[self._agree(_REASONS.index(self.stop_alone()))]

    def stop_alone(self) -> Reason | None:
        """Why this process should end its part of work that is shared out, without asking the others."""
        if self.interrupted():
            return "interrupted"
        return "timeout" if self._latest is not None and time.monotonic() > self._latest else None

    def go_on(self, together: bool = True) -> None:
        """Between two products: raise where the run is to end now.

        Args:
            together: all processes of the run are at this place. Where they may not be, only a single one ends.

        Raises:
            TimeIsUpError: there is a reason to.
        """
        reason = self.stop() if together or self._alone else None
        if reason is not None:
            raise TimeIsUpError(reason)

    def stop_reading(self) -> Reason | None:
        """Why to read no more data: half of the time belongs to what is computed from it."""
        late = self._latest is not None and (
            time.monotonic() - self._began > 0.5 * (self._latest - self._began)
        )
        return "timeout" if self.agreed(late) else self.stop()

    def note(self, text: str) -> None:
        """Say what was switched, skipped or assumed."""
        self.notes.append(text)

    def cut_short(self, note: str | None = None) -> None:
        """Say that the answer will be only a part of what was asked for."""
        self.complete = False
        if note is not None:
            self.note(note)

    def find(
        self,
        rule: Rule,
        subject: str,
        message: str,
        *,
        value: float | None = None,
        threshold: float | None = None,
    ) -> None:
        """Add a finding; its message ends with the rule's remedy.

        Args:
            rule: what was found, of those that the question's ``findings.py`` names.
            subject: where.
            message: what, with its figures.
            value: that was judged.
            threshold: where it is not the rule's own.
        """
        self.findings.append(
            Finding(
                rule.id,
                rule.severity,
                subject,
                value,
                rule.threshold if threshold is None else threshold,
                ": ".join(filter(None, [message, self._advice(rule)])),
            )
        )

    def _advice(self, rule: Rule) -> str:
        finer = "" if self.in_double() else rule.finer
        return " or ".join(filter(None, [finer, rule.remedy]))

    def part(self, prefix: str, deadline: float | None = None) -> "Journal":
        """The journal of a run that is a part of this one; its progress is shown behind ``prefix``."""
        left = None if self._latest is None else max(0.0, self._latest - time.monotonic())
        limits = [seconds for seconds in (left, deadline) if seconds is not None]
        part = Journal(
            progress=lambda stage: self.progress(stage._replace(what=prefix + stage.what)),
            interrupted=self.interrupted,
            deadline=min(limits, default=None),
            agree=None if self._alone else self._agree,
        )
        part.in_double = self.in_double
        return part

    def adopt(self, findings: list[Finding], name: str) -> None:
        """Take over the findings of a part of this run, which say the name of what they are about."""
        for finding in findings:
            subject, message = (f"{name}: {text}" for text in (finding.subject, finding.message))
            self.findings.append(replace(finding, subject=subject, message=message))

    def gather(self, part: "Journal", name: str) -> None:
        """Take over what one of many parts said; what several say is said once, with all their names."""
        for text in part.notes:
            note = text.replace(f"{Path(name).name} ", "the file ")
            said = self._said.setdefault(note, _Said())
            said.names.append(name)
            if said.note in self.notes:
                self.notes.remove(said.note)
            said.note = f"{_listed(said.names)}: {note}"
            self.notes.append(said.note)
        for finding in part.findings:
            said = self._said.setdefault(finding.rule, _Said())
            said.names.append(name)
            if said.finding in self.findings:
                self.findings.remove(said.finding)
            if said.worst is None or abs(finding.value or 0.0) > abs(said.worst.value or 0.0):
                said.worst = finding
            where = _listed(said.names)
            most = " (the largest of these)" if len(said.names) > 1 else ""
            said.finding = replace(
                said.worst,
                subject=f"{where}: {said.worst.subject}",
                message=f"{where}: {said.worst.message}{most}",
            )
            self.findings.append(said.finding)

    def answer(self, result: R, *, exit_code: int | None = None, **vectors: Any) -> Answer[R]:
        """The result with all that was said on the way; ``vectors`` are the fields of `Answer` for eigenvectors."""
        return Answer(result, self.findings, self.notes, self.complete, exit_code, **vectors)


def line(stage: Stage, elapsed: float) -> str:
    """``products 23 of about 41, 5 of 13 converged, about 12 s left``."""
    parts = [stage.what]
    if stage.expected:
        parts[0] += f" {stage.done} of about {stage.expected}"
    elif stage.done:
        parts[0] += f" {stage.done}"
    if stage.detail:
        parts.append(stage.detail)
    if stage.expected and stage.done:
        left = elapsed / stage.done * max(0, stage.expected - stage.done)
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
