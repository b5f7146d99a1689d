"""How the ends of a spectrum are shown, and what they mean."""

from curvcli.analyses.hessian.layers_view import layer_blocks
from curvcli.analyses.hessian.result import HessianResult
from curvcli.analyses.shared.rules import product_check
from curvcli.analyses.shared.spectrum.matrix_options import TITLES
from curvcli.report.data import Block, Cell, Chart, Column, Facts, Measured, Series, Table, yes
from curvcli.report.numbers import number


def view(result: HessianResult) -> list[Block]:
    """The pairs as a table, the reach, and what they mean."""
    sampled: list[tuple[Cell, ...]] = [
        (Measured(s.expected, s.monte_carlo_standard_error),) for s in result.sampled or ()
    ]
    rows: list[tuple[Cell, ...]] = [
        (f"{'top' if i < len(result.top) else 'bottom'}", Measured(p.value, p.residual), yes(p.converged),
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
                "every eigenvalue is in",
                f"[{number(reach.lower)}, {number(reach.upper)}] with probability {reach.probability:g}",
            ),
            ("converged", _converged(result)),
            ("product check", product_check(result.hvp_check)),
        ]
    )
    title = TITLES[result.matrix]
    caption = "Some eigenvalue lies within each λ ± residual. ± data: how much λ varies with the samples given."
    if sampled:
        caption += " vᵀFv ± s.e.: over all targets, exactly, and how far drawn ones move it."
    table = Table(
        f"{title[0].upper()}{title[1:]} eigenvalues",
        (
            Column("end", numeric=False),
            Column("λ ± residual", rank=0),
            Column("converged", numeric=False, rank=0),
            Column("± data"),
            *((Column("vᵀFv ± s.e."),) if sampled else ()),
        ),
        rows,
        caption,
    )
    return [facts, table, *_stems(result), *layer_blocks(result.per_layer)]


def _stems(result: HessianResult) -> list[Block]:
    """The eigenvalues by rank, each with the room that its residual leaves; the bottom ones from below."""
    if len(result.top) + len(result.bottom) < 2:
        return []
    series = []
    for name, pairs in (("from the top", result.top), ("from the bottom", result.bottom)):
        if pairs:
            values, errors = [p.value for p in pairs], [p.residual for p in pairs]
            low = [v - e for v, e in zip(values, errors, strict=True)]
            high = [v + e for v, e in zip(values, errors, strict=True)]
            ranks = [float(i + 1) for i in range(len(pairs))]
            series.append(Series(name, ranks, values, low, high, mark="stems"))
    return [Chart("Eigenvalues by rank", "rank", series, y_label="λ")]


def _converged(result: HessianResult) -> str:
    """How many of the eigenvalues, and what ended the run where it is not all."""
    pairs = [*result.top, *result.bottom]
    told = f"{sum(p.converged for p in pairs)} of {len(pairs)} eigenvalues"
    ended = {
        "max_matvecs": "ended by --max-matvecs",
        "timeout": "ended by --timeout",
        "interrupted": "interrupted",
    }
    return f"{told}, {ended[result.status]}" if result.status in ended else told
