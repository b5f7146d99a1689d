"""What a run gives back, and the envelope that its answer travels in."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from curvcli import __version__
from curvcli.errors import EXIT_INTERNAL, CurvError
from curvcli.report.data import Envelope, ErrorInfo, Finding, Headline

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.analyses.shared.journal import Journal
    from curvcli.analyses.shared.subject import Subject

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
    headline: Headline | None = None
    """The answer in one sentence; `Question.ask` adds it."""
    vectors_KN: "Tensor | None" = None
    """Eigenvectors that belong to the result, top ones first, for a question that builds on it."""


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
