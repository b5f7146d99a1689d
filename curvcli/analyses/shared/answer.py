"""What a run gives back, and the envelope that its answer travels in."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from curvcli import __version__
from curvcli.errors import EXIT_INTERNAL, CurvError
from curvcli.report.data import Envelope, ErrorInfo, Finding, Headline

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.analyses.shared.journal import Journal
    from curvcli.analyses.shared.question import Question
    from curvcli.analyses.shared.subject import Subject
    from curvcli.objective.layout import Layout

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True)
class Answer(Generic[R_co]):
    """The answer to a question."""

    result: R_co
    findings: list[Finding]
    notes: list[str]
    """What was switched, skipped or assumed."""
    complete: bool = True
    """Whether it is all that was asked for; a part ends the program with exit code 3."""
    exit_code: int | None = None
    """How the program ends, from a question that judges."""
    vectors_KN: "Tensor | None" = None
    """Eigenvectors that belong to the result, top ones first, for a question that builds on it."""
    layout: "Layout | None" = None
    """Which parameters the vectors are made of,"""
    names: tuple[str, ...] = ()
    """and their names."""
    headline: Headline | None = None
    """The answer in one sentence; `Question.ask` adds it,"""
    question: "Question | None" = None
    """and itself."""

    @property
    def vectors(self) -> "dict[str, Tensor]":
        """Eigenvectors by parameter, each of shape (K, *parameter); empty where the result has none."""
        import torch

        if self.vectors_KN is None or self.layout is None:
            return {}
        parts = [self.layout.views(v_N) for v_N in self.vectors_KN]
        return {
            name: torch.stack(same)
            for name, same in zip(self.names, zip(*parts, strict=True), strict=True)
        }

    def to_dict(self) -> dict[str, Any]:
        """Result, findings, notes and verdict as plain Python values, as in the JSON."""
        whole = {
            "command": self.question.name if self.question else None,
            "result": self.result,
            "findings": self.findings,
            "notes": self.notes,
            "complete": self.complete,
            "verdict": self.headline,
        }
        plain: dict[str, Any] = msgspec.to_builtins(whole)
        return plain

    def save(self, path: "str | Path") -> None:
        """Write `to_dict` as JSON; `curvcli.read_answer` reads it."""
        from curvcli.files import write_whole

        write_whole(
            Path(path), msgspec.json.format(msgspec.json.encode(self.to_dict()), indent=2) + b"\n"
        )

    def to_frame(self) -> Any:
        """The main table as a `pandas.DataFrame`, numbers with their errors in columns of their own.

        Raises:
            UsageError: pandas is not installed, or the answer has no table.
        """
        from curvcli.report.frame import frame_of

        return frame_of(self.question.view(self.result) if self.question else [])

    def plot(self, axes: Any = None) -> Any:
        """Draw the pictures by matplotlib.

        Args:
            axes: of matplotlib, for the first picture; None: a new figure with all of them.

        Returns:
            The axes that were given, or a list of new ones; each can be drawn on.

        Raises:
            OutputError: the answer has nothing to draw, or matplotlib is not installed.
        """
        from curvcli.report.figure import draw as draw_on
        from curvcli.report.figure import drawn, pictures

        found = pictures(self.question.view(self.result) if self.question else [])
        return drawn(found)[1] if axes is None else draw_on(axes, found[0])

    def _repr_html_(self) -> str:
        """The verdict, the pictures and the tables, for notebooks."""
        from curvcli.report.page.html import fragment

        blocks = self.question.view(self.result) if self.question else []
        return fragment(blocks, self.findings, self.headline)


def envelope(
    command: str,
    subject: "Subject",
    journal: "Journal",
    answer: Answer[Any] | None,
    error: ErrorInfo | None = None,
) -> Envelope[Any]:
    """The answer of a run, or what is known of one that failed, as every format has it."""
    notes = answer.notes if answer else list(dict.fromkeys([*subject.notes, *journal.notes]))
    return Envelope(
        command=command,
        version=__version__,
        target=subject.info(),
        verdict=answer.headline if answer else None,
        result=answer.result if answer else None,
        complete=answer.complete if answer else False,
        findings=answer.findings if answer else journal.findings,
        notes=notes,
        cost=subject.cost_info(journal.seconds),
        error=error,
    )


def internal(problem: BaseException) -> ErrorInfo:
    """A defect of curvcli as it stands in an envelope."""
    hint = "this is a defect of curvcli: please report it with the output of the same command with --verbose"
    return ErrorInfo("internal", f"{type(problem).__name__}: {problem}", hint, EXIT_INTERNAL)


def error_info(problem: CurvError) -> ErrorInfo:
    """The error as it stands in an envelope."""
    return ErrorInfo(problem.code, problem.message, problem.hint, problem.exit_code)
