"""How a learning rate is shown."""

from curvcli.analyses.lr.result import LrResult, Verdict
from curvcli.report.data import (
    Block,
    Chart,
    Column,
    Facts,
    Measured,
    Sentence,
    Series,
    State,
    Table,
)
from curvcli.report.numbers import number

_WHY: dict[Verdict, str] = {
    "works": "it works",
    "diverges": "the loss diverges",
    "rises": "the loss rises again",
    "dies": "units die",
    "unstable": "λ · rate stays above the limit",
}


def view(result: LrResult) -> list[Block]:
    """The bound, one row for each run, and what to do."""
    bound = result.bound
    facts = Facts(
        [
            ("optimizer", f"{result.optimizer} ({result.state} state)"),
            ("loss", result.loss),
            ("λ max", Measured(bound.lambda_max, bound.residual)),
            (f"bound {number(bound.limit, 3)}/λ", bound.rate),
        ]
    )
    table = Table(
        "Short training runs",
        (
            Column("rate"),
            Column("rate/bound"),
            Column("outcome", numeric=False, rank=0, folds=True),
            Column("steps"),
            Column("loss"),
            Column("dead"),
        ),
        [
            (
                _named(t.rate, result.checkpoint_rate),
                number(t.rate / bound.rate, 3) if bound.rate else None,
                State(_WHY[t.verdict], "good" if t.verdict == "works" else "bad"),
                t.steps,
                t.loss,
                None if t.dead_fraction is None else f"{t.dead_fraction:.0%}",
            )
            for t in result.trials
        ],
        "On copies of the weights; loss over all batches at the end; dead: share of units that never fire. "
        + _order(result),
    )
    return [facts, table, *_losses(result), *(Sentence(text) for text in _more(result))]


def _losses(result: LrResult) -> list[Block]:
    """The loss at the end of each run by its rate, what works apart from what does not."""
    series = []
    for name, works in (("works", True), ("does not", False)):
        chosen = sorted(
            (t.rate, t.loss)
            for t in result.trials
            if (t.verdict == "works") is works and t.loss is not None
        )
        if chosen:
            rates, losses = [rate for rate, _ in chosen], [loss for _, loss in chosen]
            series.append(Series(name, rates, losses, mark="points"))
    losses = [loss for s in series for loss in s.y]
    if len(losses) < 2:
        return []
    rate = result.bound.rate
    if rate is not None and rate > 0:
        # As far as the points, so that the axis stays theirs.
        series.append(Series("bound", [rate, rate], [min(losses), max(losses)]))
    log = min(losses) > 0
    return [Chart("Loss at the end of each run", "rate", series, "loss", log_x=True, log_y=log)]


def _named(rate: float, own: float | None) -> str:
    return f"{number(rate, 3)} (own)" if rate == own else number(rate, 3)


def _order(result: LrResult) -> str:
    """What the runs see of the data."""
    own = ""
    if result.checkpoint_rate is not None:
        own = " own: the rate in the optimizer's state."
    if result.batches == 1:
        return f"Each step is on all data; smaller batches are noisier (--batch-size).{own}"
    return f"One batch a step, in the order of the data, the same in every run; it is not shuffled.{own}"


def _more(result: LrResult) -> list[str]:
    """Where the range ends, and what a warm-up would bring."""
    if result.highest is None:
        return []
    told = []
    if result.ends_by is not None and result.fails_at is not None:
        told.append(
            f"The range ends because at {number(result.fails_at, 3)} {_WHY[result.ends_by]}."
        )
    else:
        told.append("No rate that fails was found: the range may go on.")
    rate = result.bound.rate
    if rate is not None and result.highest > rate:
        told.append(
            "Rates above the bound can train: the loss swings along the sharpest direction, which drives the weights "
            "to where it is less sharp (edge of stability, Cohen et al. 2021). The bound holds where λ stays as it is."
        )
    return [*told, *_warm_up(result)]


def _warm_up(result: LrResult) -> list[str]:
    told = []
    if len(result.curvature) > 1 and result.curvature[0].lambda_max > 0:
        ratio = result.curvature[-1].lambda_max / result.curvature[0].lambda_max
        word = "falls" if ratio < 0.9 else "grows" if ratio > 1.1 else "stays"
        told.append(
            f"At the highest rate λ {word}: {number(ratio, 3)} times its start after {result.curvature[-1].step} steps."
        )
    warm = result.warm_up
    if warm is not None:
        outcome = (
            "it works: warm up, and go higher"
            if warm.verdict == "works"
            else f"{_WHY[warm.verdict]}: warm-up does not help to that rate"
        )
        told.append(f"Warmed up over {warm.steps} steps to {number(warm.rate, 3)}, {outcome}.")
    return told
