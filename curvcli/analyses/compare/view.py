"""How a comparison of two checkpoints is shown."""

import math

from curvcli.analyses.compare.result import CompareResult, FigureComparison, Sampling
from curvcli.analyses.shared.figures import Figure
from curvcli.report.data import (
    Bar,
    Block,
    Cell,
    Chart,
    Column,
    Facts,
    Measured,
    Sentence,
    Series,
    Table,
)
from curvcli.report.head import fit_line
from curvcli.report.numbers import number

_ROWS = 24
_LAYERS = 20


def view(result: CompareResult) -> list[Block]:
    """The figures, the eigenspaces, the line and the layers."""
    return [
        *_figures(result),
        *_eigenspaces(result),
        *([] if result.identical else [*_line(result), _layers(result)]),
        *_classes(result),
        *_fits(result),
        *_verdict(result),
    ]


def _verdict(result: CompareResult) -> list[Block]:
    """Which is better on this data, by how much, with its error."""
    if result.sampling is not None:
        return [_beyond(result.sampling, result.identical)]
    if result.identical:
        return [Sentence("The checkpoints are identical: every weight is the same to the bit.")]
    pair = result.paired
    if pair is None:
        return []
    if pair.standard_error is None:
        return [
            Sentence("Which is better cannot be told: the data has too few parts for an error.")
        ]
    told = f"{number(abs(pair.difference), 3)} ± {number(pair.standard_error, 2)}"
    if pair.better is None:
        return [
            Sentence(
                f"On this data neither is better: the losses differ by {told}, within sampling."
            )
        ]
    return [
        Sentence(
            f"{pair.better.upper()} is better on this data: its loss is lower by {told} (paired, {pair.pieces} parts)."
        )
    ]


def _beyond(found: Sampling, identical: bool) -> Sentence:
    """What differs between the data sets beyond sampling."""
    told = []
    for name, part in (("loss", found.loss), ("λ_max", found.lambda_max)):
        if part is None:
            continue
        error = "" if part.standard_error is None else f" ± {number(part.standard_error, 2)}"
        judged = {True: "beyond sampling", False: "within sampling", None: "of unknown error"}
        told.append(f"{name} by {number(part.difference, 3)}{error}, {judged[part.beyond]}")
    slope = found.gradient
    expected = "" if slope.expected is None else f" (sampling makes {number(slope.expected, 3)})"
    told.append(
        f"the gradient by {number(slope.distance, 3)}{expected}, "
        + {True: "beyond sampling", False: "within sampling", None: "of unknown error"}[
            slope.beyond
        ]
    )
    what = "The same weights on" if identical else "Other weights on"
    return Sentence(f"{what} other data: B differs from A in {'; '.join(told)}.")


def _fits(result: CompareResult) -> list[Block]:
    """Loss and accuracy of both."""
    lines = [(letter, fit_line(info)) for letter, info in (("A", result.a), ("B", result.b))]
    return [Sentence(f"{letter}: {line}") for letter, line in lines if line is not None]


def _classes(result: CompareResult) -> list[Block]:
    """Loss and curvature of each class."""
    if not result.classes:
        return []
    names = ("class", "samples", "loss A", "loss B", "λ max A", "λ max B")
    rows = [
        (c.number, c.samples, c.loss_a, c.loss_b, c.lambda_max_a, c.lambda_max_b)
        for c in result.classes
    ]
    return [
        Table("Classes", tuple(map(Column, names)), rows, "λ max of the class's own loss, to 1 %")
    ]


def _figures(result: CompareResult) -> list[Block]:
    # What is judged by an error of its own, or is no number, is of interest first; lists of layers stay in JSON.
    rows = [r for r in result.figures if r.path.count(".") <= 2 and _telling(r)]
    rows.sort(key=lambda r: r.path.count("."))
    table = Table(
        "Figures",
        (
            Column("figure", numeric=False),
            Column("A", rank=0),
            Column("B", rank=0),
            Column("B / A"),
            Column("differ", numeric=False, rank=2),
        ),
        [
            (r.path, _cell(r.a), _cell(r.b), r.ratio, "?" if r.beyond is None else r.beyond)
            for r in rows[:_ROWS]
        ],
        "differ: beyond both intervals."
        + (f" {len(result.figures) - len(rows[:_ROWS])} more figures are in the JSON answer."
           if len(result.figures) > _ROWS else ""),
    )  # fmt: skip
    return [table] if rows else []


def _telling(row: FigureComparison) -> bool:
    if row.path.rsplit(".", 1)[-1].endswith(("residual", "error", "interval", "converged")):
        return False
    return row.a.basis not in ("exact",) or row.beyond is not False


def _cell(figure: Figure) -> Cell:
    if isinstance(figure.value, float):
        low, high = figure.bounds
        if figure.basis not in ("exact", "rounding") and math.isfinite(high - low):
            return Measured(figure.value, max(high - figure.value, figure.value - low))
    return figure.value


def _eigenspaces(result: CompareResult) -> list[Block]:
    spaces = result.eigenspaces
    if spaces is None:
        return []
    return [
        Facts(
            [
                ("dimension", spaces.dimension),
                ("overlap", Measured(spaces.overlap, spaces.overlap_error)),
                ("expected at random", spaces.expected_at_random),
                (
                    "cosines of the principal angles",
                    ", ".join(number(c, 3) for c in spaces.cosines),
                ),
                ("gaps below (A, B)", ", ".join(number(g, 3) for g in spaces.gaps)),
            ],
            "Leading eigenspaces",
        )
    ]


def _line(result: CompareResult) -> list[Block]:
    line = result.line
    finite = [p for p in line.points if p.loss is not None]
    chart = Chart(
        "Loss on the line from A to B",
        "position",
        [Series("loss", [p.position for p in finite], [p.loss or 0.0 for p in finite])],
        y_label="loss",
    )
    if line.height is None:
        text, tone = f"The loss is not finite at {line.position:.3g} of the way.", "bad"
    elif line.connected:
        text, tone = "No barrier on the line: the loss stays below the straight line.", "good"
    else:
        text = (
            f"Barrier: {number(line.height)} ± {number(line.error, 1)} above the straight line, "
            f"at {line.position:.3g} of the way."
        )
        tone = "plain"
    return [chart, Sentence(text, tone)]  # type: ignore[arg-type]


def _layers(result: CompareResult) -> Table:
    moved = [m for m in result.layers if m.distance != 0]
    shown = moved[:_LAYERS]
    still = len(result.layers) - len(moved)
    rest = f" {still} parameters did not move." if still else ""
    rest += (
        f" {len(moved) - len(shown)} more that moved are in the JSON answer."
        if len(moved) > len(shown)
        else ""
    )
    return Table(
        "Layers that moved",
        (
            Column("parameter", numeric=False),
            Column("distance"),
            Column("relative", rank=0),
            Column("cosine"),
            Column("share"),
            Column("", numeric=False),
        ),
        [(m.name, m.distance, m.relative, m.cosine, m.share, Bar(m.share)) for m in shown],
        f"‖B − A‖ = {number(result.distance)} in all; share: of its square.{rest}",
    )
