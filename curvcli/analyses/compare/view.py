"""How a comparison of two checkpoints is shown."""

import math

from curvcli.analyses.compare.result import CompareResult, FigureComparison
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
from curvcli.report.head import called, fit_line
from curvcli.report.numbers import number

_ROWS = 12
# Figures in the words of the field, in the order in which they are of interest.
_WORDS = {
    "hessian.loss": "loss",
    "hessian.gradient_norm": "gradient norm",
    "hessian.top[0].value": "largest eigenvalue",
    "hessian.top[1].value": "second largest eigenvalue",
    "hessian.bottom[0].value": "smallest eigenvalue",
    "trace.trace.value": "trace of the Hessian",
    "trace.frobenius.value": "Frobenius norm of the Hessian",
    "trace.effective_dimension.value": "effective dimension",
    "density.mass_at_zero.value": "share of eigenvalues at zero",
    "density.mass_below_zero.value": "share of negative eigenvalues",
    "saddle.verdict": "kind of point",
    "saddle.stationarity": "stationarity ρ",
    "taylor.critical_learning_rate": "critical learning rate",
    "jacobian.spectral.median": "Jacobian norm, median",
    "jacobian.spectral.maximum": "Jacobian norm, largest",
    "gradients.gain_per_layer": "gradient gain per layer",
    "gradients.depth_gain": "gradient gain over the depth",
    "gradients.activation_gain_per_layer": "activation gain per layer",
    "gradients.noise.signal_to_noise": "gradient signal to noise",
    "backprop.passed": "backward pass right",
    "sharpness.worst.found": "worst rise in a ball",
    "sharpness.worst_adaptive.found": "worst rise, adaptive",
    "sharpness.average.value": "mean rise under noise",
    "sharpness.average_adaptive.value": "mean rise, adaptive",
    "sharpness.pac_bayes.value": "PAC-Bayes σ",
    "sharpness.pac_bayes_adaptive.value": "PAC-Bayes σ, adaptive",
    "sharpness.m_sharpness.value": "m-sharpness",
    "sharpness.relative_flatness.value": "relative flatness",
    "sharpness.fisher_rao.value": "Fisher-Rao norm",
}
_LAYERS = 20


def view(result: CompareResult) -> list[Block]:
    """The figures, the eigenspaces, the line and the layers."""
    return [
        *_sides(result),
        *_figures(result),
        *_eigenspaces(result),
        *([] if result.identical else [*_line(result), _layers(result)]),
        *_classes(result),
    ]


def _sides(result: CompareResult) -> list[Block]:
    """What A and B are, with loss and accuracy."""
    sides = zip("AB", result.names, (result.a, result.b), strict=True)
    found: list[Block] = []
    for letter, name, info in sides:
        told = (name if name != letter else None, fit_line(info))
        known = ". ".join(text for text in told if text)
        found += [Sentence(f"{letter}: {known}")] if known else []
    return found


def about(result: CompareResult) -> str:
    """Both checkpoints by name."""
    return " and ".join(called(info) for info in (result.a, result.b) if info is not None)


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
    """The figures that have a name in words; of an analysis without such, those that tell most."""
    by_path = {r.path: r for r in result.figures}
    rows = [(words, by_path[path]) for path, words in _WORDS.items() if path in by_path]
    if not rows:
        telling = [r for r in result.figures if r.path.count(".") <= 2 and _telling(r)]
        # What was measured with an error comes before what was set and what is exact.
        exact = ("exact", "rounding")
        rows = [
            (r.path, r)
            for r in sorted(telling, key=lambda r: (r.a.basis in exact, r.path.count(".")))
        ]
    rows = rows[:_ROWS]
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
            (words, _cell(r.a), _cell(r.b), r.ratio, _differ(r))
            for words, r in rows
        ],
        "± to the end of the interval that is judged. differ: by paired samples; here: beyond rounding, other data "
        "may say otherwise."
        + (f" {len(result.figures) - len(rows)} more figures are in the JSON answer."
           if len(result.figures) > len(rows) else ""),
    )  # fmt: skip
    return [table] if rows else []


def _differ(row: FigureComparison) -> Cell:
    """Whether that is known of the data, or of the figures on it only."""
    if row.beyond is None:
        return "?"
    return "here" if row.beyond and row.by == "intervals" else row.beyond


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
                (
                    "overlap (1: the same directions)",
                    Measured(spaces.overlap, spaces.overlap_error),
                ),
                ("expected at random", spaces.expected_at_random),
                (
                    "cosines of the principal angles",
                    ", ".join(number(c, 3) for c in spaces.cosines),
                ),
                (
                    "gaps to the next eigenvalue (A, B)",
                    ", ".join(number(g, 3) for g in spaces.gaps),
                ),
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
