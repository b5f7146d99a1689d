"""Where a run says how far it has come and what it met on the way, and asks whether to go on."""

import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from msgspec.structs import replace

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.rules import Rule
from curvcli.report.data import Finding

Reason = Literal["timeout", "interrupted"]
R = TypeVar("R")


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
    """

    def __init__(
        self,
        *,
        progress: Callable[[Stage], None] = lambda _: None,
        interrupted: Callable[[], bool] = lambda: False,
        item: Callable[[Any], None] = lambda _: None,
        deadline: float | None = None,
    ) -> None:
        self.progress = progress
        self.interrupted = interrupted
        self.item = item
        self.notes: list[str] = []
        self.findings: list[Finding] = []
        self.complete = True
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

    def stop(self) -> Reason | None:
        """Why to end the run now, if there is a reason."""
        if self.interrupted():
            return "interrupted"
        if self._latest is not None and time.monotonic() > self._latest:
            return "timeout"
        return None

    def stop_reading(self) -> Reason | None:
        """Why to read no more data: half of the time belongs to what is computed from it."""
        if self._latest is not None and time.monotonic() - self._began > 0.5 * (
            self._latest - self._began
        ):
            return "timeout"
        return self.stop()

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
                f"{message}: {rule.remedy}" if rule.remedy else message,
            )
        )

    def part(self, prefix: str, deadline: float | None = None) -> "Journal":
        """The journal of a run that is a part of this one; its progress is shown behind ``prefix``."""
        left = None if self._latest is None else max(0.0, self._latest - time.monotonic())
        limits = [seconds for seconds in (left, deadline) if seconds is not None]
        return Journal(
            progress=lambda stage: self.progress(stage._replace(what=prefix + stage.what)),
            interrupted=self.interrupted,
            deadline=min(limits, default=None),
        )

    def adopt(self, findings: list[Finding], name: str) -> None:
        """Take over the findings of a part of this run, which say the name of what they are about."""
        for finding in findings:
            subject, message = (f"{name}: {text}" for text in (finding.subject, finding.message))
            self.findings.append(replace(finding, subject=subject, message=message))

    def answer(self, result: R, *, exit_code: int | None = None, **vectors: Any) -> Answer[R]:
        """The result with all that was said on the way; ``vectors`` are the fields of `Answer` for eigenvectors."""
        return Answer(result, self.findings, self.notes, self.complete, exit_code, **vectors)
