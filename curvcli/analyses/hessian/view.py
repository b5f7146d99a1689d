"""How the ends of a spectrum are shown, and what they mean."""

from curvcli.analyses.hessian.layers_view import layer_blocks
from curvcli.analyses.hessian.result import HessianResult
from curvcli.analyses.shared.eigenpairs import Eigenpair, rate_sentence
from curvcli.analyses.shared.matrix_options import TITLES
from curvcli.analyses.shared.rules import product_check
from curvcli.report.data import Block, Cell, Column, Facts, Measured, Sentence, Table
from curvcli.report.numbers import number


def view(result: HessianResult) -> list[Block]:
    """The pairs as a table, the reach, and what they mean."""
    sampled: list[tuple[Cell, ...]] = [
        (Measured(s.expected, s.monte_carlo_standard_error),) for s in result.sampled or ()
    ]
    rows: list[tuple[Cell, ...]] = [
        (f"{'top' if i < len(result.top) else 'bottom'}", Measured(p.value, p.residual), p.converged,
         p.batch_standard_error, *(sampled[i] if i < len(sampled) else () if not sampled else (None,)))
        for i, p in enumerate([*result.top, *result.bottom])
    ]  # fmt: skip
    reach = result.reach
    facts = Facts(
        [
            ("loss", result.loss),
            ("gradient norm", result.gradient_norm),
            ("parameters", result.parameters),
            (
                "reach",
                f"[{number(reach.lower)}, {number(reach.upper)}] with probability {reach.probability:g}",
            ),
            ("status", result.status.replace("_", " ")),
            ("product check", product_check(result.hvp_check)),
        ]
    )
    title = TITLES[result.matrix]
    caption = "Some eigenvalue lies within each λ ± residual. batch s.e.: how much λ varies with the data."
    if sampled:
        caption += " vᵀFv ± s.e.: over all targets, exactly, and how far drawn ones move it."
    table = Table(
        f"{title[0].upper()}{title[1:]} eigenvalues",
        (
            Column("end", numeric=False),
            Column("λ ± residual"),
            Column("converged", numeric=False),
            Column("batch s.e."),
            *((Column("vᵀFv ± s.e."),) if sampled else ()),
        ),
        rows,
        caption,
    )
    return [facts, table, *layer_blocks(result.per_layer), *_meaning(result)]


def _meaning(result: HessianResult) -> list[Block]:
    sentences: list[Block] = []
    if result.top and result.top[0].value > 0 and result.order == "value":
        sentences += _stability(result, result.top[0])
    if result.matrix not in ("hessian", "preconditioned"):
        return sentences
    lowest = min((p for p in [*result.top, *result.bottom]), key=lambda p: p.value)
    if lowest.value + lowest.residual < 0:
        sentences.append(
            Sentence(
                f"There is negative curvature: an eigenvalue of at most {number(lowest.value + lowest.residual)}. "
                "The surface is not convex here.",
                "plain",
            )
        )
    elif result.reach.lower >= 0:
        sentences.append(
            Sentence(
                f"No negative curvature, with probability {result.reach.probability:g}.", "good"
            )
        )
    else:
        sentences.append(
            Sentence(
                "No negative curvature was found; if there is any, it is above "
                f"{number(result.reach.lower)} with probability {result.reach.probability:g}."
            )
        )
    return sentences


def _stability(result: HessianResult, sharpest: Eigenpair) -> list[Block]:
    """What the largest eigenvalue means for the optimizer's steps."""
    low, high = sharpest.value - sharpest.residual, result.reach.upper
    if result.matrix == "hessian":
        said = rate_sentence(low, high, result.reach.probability)
        return [said] if said else []
    made = result.preconditioner
    if made is None or made.stability_threshold is None:
        return []
    limit = made.stability_threshold
    text = (
        f"{made.algorithm} with learning rate {number(made.learning_rate)} is stable below λ = {number(limit)}; the "
        f"sharpest direction has {number(sharpest.value)}"
    )
    if low > limit:
        return [Sentence(f"{text}, at least {low / limit:.0%} of that: it is unstable.", "bad")]
    if high < limit:
        return [Sentence(f"{text}, at most {high / limit:.0%} of that.", "plain")]
    return [Sentence(f"{text}: on which side of it cannot be told yet.", "plain")]
