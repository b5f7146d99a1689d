"""The options of `curvcli lr`."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.lr.headline import headline
from curvcli.analyses.lr.result import LrResult
from curvcli.analyses.lr.view import view
from curvcli.analyses.shared.question import Question


class LrOptions(Struct, frozen=True, kw_only=True):
    """Find a learning rate that works, by short training runs on copies of the weights.

    Several rates are tried for a few steps each, while loss, dead units and curvature are watched. The answer is a
    range, why it ends where it ends, and whether warm-up would help. Your weights stay as they are. Where the
    checkpoint holds an optimizer's state, the runs go on from it.
    """

    optimizer: Annotated[
        str | None,
        "sgd, momentum, adam or adamw; or a file with its state.  [default: the checkpoint's state, else sgd]",
    ] = None
    momentum: Annotated[
        Annotated[float, Meta(ge=0, lt=1)] | None,
        Meta(description="β of momentum, β₁ of Adam.  [default: the state's, else 0.9]"),
    ] = None
    steps: Annotated[int, Meta(ge=4, description="Of each run, one batch a step.")] = 50
    refine: Annotated[
        int,
        Meta(ge=0, description="Halvings of the factor of 4 between what works and what fails."),
    ] = 5
    confirm: Annotated[
        int,
        Meta(
            ge=0,
            description="The highest rate and 0.9 times it must also work for so many times the steps; 0: not asked.",
        ),
    ] = 6
    max_trials: Annotated[int, Meta(ge=2, description="Runs at most.")] = 24
    max_matvecs: Annotated[
        int, Meta(ge=2, description="Products for the largest eigenvalue at the start at most.")
    ] = 100
    timeout: Annotated[
        str | None, "Stop after this time, e.g. 90s or 5m, and show what is known by then."
    ] = None


_MEANING = (
    "The bound is the largest rate that is stable on the quadratic model of the loss here. The short runs "
    "say what holds in truth: rates from about half of the best gain up to the highest that works are "
    "worth trying."
)

QUESTION = Question(
    "lr", LrOptions, LrResult, view, headline, divides=(), wanted=lambda _: 1, meaning=_MEANING
)
