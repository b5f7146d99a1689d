"""How the curvature of single layers looks: a row and a bar for each, shares of eigenvectors, densities."""

import math
from collections.abc import Sequence

from curvcli.analyses.hessian.layers_result import LayerCurvature, PerLayer, Sampled
from curvcli.report.data import (
    Bar,
    BarGroup,
    Bars,
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
from curvcli.report.numbers import measured, number

# A network with more layers than twice this is folded to so many.
_FOLDED = 30
# Decades that a full bar stands for at least, and the share of a cell's width that it fills at most.
_DECADES, _FULL = 3.0, 0.4
# Eigenvectors whose shares are shown.
_VECTORS = 4
_CURVES = 3
# Densities below this share of the largest are not drawn.
_FAINT = 1e-5


def layer_blocks(found: PerLayer | None) -> list[Block]:
    """The layers as tables, and how they stand to each other."""
    if found is None:
        return []
    shown = _fold(found.layers)
    blocks: list[Block] = [
        _facts(found), _table(found, shown), _ends(found, shown), _shares(found, shown),
    ]  # fmt: skip
    if found.grid is not None:
        blocks.append(_densities(found))
    return [*blocks, *_meaning(found)]


def _fold(layers: Sequence[LayerCurvature]) -> list[LayerCurvature]:
    """The layers of the largest curvature, in execution order."""
    if len(layers) <= 2 * _FOLDED:
        return list(layers)
    order = sorted(range(len(layers)), key=lambda i: -_size(layers[i]))
    return [layers[i] for i in sorted(order[:_FOLDED])]


def _size(layer: LayerCurvature) -> float:
    return max(abs(layer.lambda_max.value), abs(layer.lambda_min.value))


def _facts(found: PerLayer) -> Facts:
    overlap = found.gradient_overlap
    rows: list[tuple[str, Cell]] = [
        (f"share of ‖H‖² in the {found.by}s", _cell(found.diagonal_share)),
        (
            f"gradient in the top {overlap.vectors} eigenvectors",
            Measured(overlap.value, overlap.residual),
        ),
    ]
    distances = found.heterogeneity
    if distances is not None:
        first, second = distances.pair
        rows += [
            ("heterogeneity, mean", _cell(distances.mean)),
            ("largest", f"{measured(_cell(distances.largest))}  {first} against {second}"),
        ]
    return Facts(rows, f"Between the {found.by}s")


def _cell(sampled: Sampled) -> Measured:
    return Measured(sampled.value, sampled.standard_error)


def _table(found: PerLayer, shown: Sequence[LayerCurvature]) -> Table:
    logs = [math.log10(size) for layer in found.layers if (size := _size(layer)) > 0]
    top = max(logs, default=0.0)
    bottom = min(min(logs, default=0.0), top - _DECADES) - 0.05 * _DECADES

    def share(layer: LayerCurvature) -> float:
        size = _size(layer)
        return _FULL * (math.log10(size) - bottom) / (top - bottom) if size > 0 else 0.0

    rows = [
        (
            layer.name,
            Measured(layer.lambda_max.value, layer.lambda_max.residual),
            Bar(share(layer)),
            Measured(layer.lambda_min.value, layer.lambda_min.residual),
            _cell(layer.trace),
        )
        for layer in shown
    ]
    bars = f"bars: largest |λ|, log scale from {10**bottom:.0e} to {10**top:.0e}"
    caption = None
    if len(shown) < len(found.layers):
        caption = f"the {len(shown)} sharpest of {len(found.layers)} {found.by}s"
    columns = (
        Column(found.by, numeric=False),
        Column("λ_max ± residual", rank=0),
        Column("", numeric=False),
        Column("λ_min"),
        Column("trace ± s.e."),
    )
    return Table(f"Curvature of each {found.by}", columns, rows, caption, bars)


def _ends(found: PerLayer, shown: Sequence[LayerCurvature]) -> Bars:
    """Largest and smallest eigenvalue of each layer with their residuals."""
    groups = [
        BarGroup(name, [e.value for e in ends], [e.residual for e in ends])
        for name, ends in (
            ("λ_max", [layer.lambda_max for layer in shown]),
            ("λ_min", [layer.lambda_min for layer in shown]),
        )
    ]
    names = [layer.name for layer in shown]
    return Bars(f"Ends of the spectrum of each {found.by}", "λ", names, groups, tabled=True)


def _shares(found: PerLayer, shown: Sequence[LayerCurvature]) -> Table:
    # The top ones; those of the smallest eigenvalues where no others were asked for.
    count = min(_VECTORS, found.gradient_overlap.vectors or len(shown[0].shares))
    rows: list[tuple[Cell, ...]] = [
        (
            layer.name,
            layer.parameters,
            number(layer.per_parameter.trace.value, 3),
            *(_percent(layer.shares[k]) for k in range(count)),
        )
        for layer in shown
    ]
    errors = shown[0].shares_residual[:count]
    rows.append(("± at most", None, None, *("open" if e is None else _percent(e) for e in errors)))
    columns = (
        Column(found.by, numeric=False),
        Column("parameters"),
        Column("mean λ"),
        *(Column(f"v{k + 1}") for k in range(count)),
    )
    caption = (
        "mean λ: trace for each parameter; v1 …: how much of the k-th eigenvector of the whole lies in each; "
        "open: not separated"
    )
    return Table("Mean eigenvalue, and shares of the leading eigenvectors", columns, rows, caption)


def _percent(value: float) -> str:
    percent = 100 * value
    if percent and percent < 0.1:
        return "<0.1 %"
    return f"{percent:.1f} %"


def _densities(found: PerLayer) -> Chart:
    """Of the sharpest layers."""
    sharpest = sorted(found.layers, key=lambda layer: -_size(layer))[:_CURVES]
    floor = _FAINT * max(max(layer.density or [0.0]) for layer in sharpest)
    return Chart(
        f"Spectral densities of the sharpest {found.by}s",
        "λ",
        [
            Series(
                layer.name, found.grid or [], [d if d > floor else 0.0 for d in layer.density or []]
            )
            for layer in sharpest
        ],
        y_label="density",
        log_y=True,
    )


def _meaning(found: PerLayer) -> list[Block]:
    """The sharpest layer, and how much sharper it is, where both are certain."""
    if len(found.layers) < 2:
        return []
    ranked = sorted(found.layers, key=lambda layer: -layer.lambda_max.value)
    sharpest, flattest = ranked[0], ranked[-1]
    low = sharpest.lambda_max.value - sharpest.lambda_max.residual
    rivals = [layer.name for layer in ranked[1:] if layer.reach.upper >= low]
    if low <= 0 or len(rivals) == len(ranked) - 1:
        return []
    if rivals:
        said = ", ".join([sharpest.name, *rivals])
        return [Sentence(f"The sharpest {found.by} is one of {said}: their intervals overlap.")]
    text = f"The sharpest {found.by} is {sharpest.name} (λ_max at least {number(low)})"
    least = flattest.lambda_max.value - flattest.lambda_max.residual
    if sharpest.lambda_max.converged and flattest.lambda_max.converged and least > 0:
        ratios = low / flattest.reach.upper, sharpest.reach.upper / least
        text += f", {_between(*ratios)} times as sharp as {flattest.name}"
    return [Sentence(text + ".")]


def _between(low: float, high: float) -> str:
    first, last = number(low, 3), number(high, 3)
    return first if first == last else f"{first} to {last}"
