"""The options of `curvcli report`."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.report.headline import headline
from curvcli.analyses.report.result import ReportResult
from curvcli.analyses.report.view import about, view
from curvcli.analyses.shared.question import Question


class ReportOptions(Struct, frozen=True, kw_only=True):
    """A page to show to a colleague: every analysis that a target allows, from one run.

    Checkpoint, model and data are loaded once; each analysis runs once, with the options of the target file. Several
    checkpoints, or a directory of them, give the page of a training run: all of them over time, then the last one.
    Written to -o report.html it is a page that needs nothing else; --static leaves its scripts out.
    """

    analysis: Annotated[
        list[str], "Analysis that is shown; repeatable.  [default: all that the target allows]"
    ] = []
    compare: Annotated[
        str | None,
        Meta(
            description="Checkpoint or target file that stands beside it, with the way between them."
        ),
    ] = None
    budget: Annotated[str, "Time to spend in all, e.g. 60s or 10m; what does not fit is named."] = (
        "5m"
    )


QUESTION = Question(
    "report",
    ReportOptions,
    ReportResult,
    view,
    headline,
    targets="series",
    named=("model", "data"),
    about=about,
)
