"""How the measures are shown: one row each."""

from curvcli.analyses.shared.rules import product_check
from curvcli.analyses.sharpness.result import RelativeFlatness, SharpnessResult, WorstCase
from curvcli.report.data import BarGroup, Bars, Block, Cell, Column, Facts, Measured, Table
from curvcli.report.numbers import at_least, at_most, number

_Row = tuple[Cell, ...]
# Weights in the picture; the table has all.
_BARS = 24


def view(result: SharpnessResult) -> list[Block]:
    """The measures, and relative flatness by layer."""
    facts = Facts([("loss", result.loss), ("product check", product_check(result.hvp_check))])
    blocks: list[Block] = [facts]
    if rows := _rows(result):
        blocks.append(
            Table(
                "Sharpness",
                (
                    Column("measure", numeric=False),
                    Column("value ± s.e.", rank=0),
                    Column("of", numeric=False, folds=True),
                    Column("rescaling", numeric=False),
                    Column("model", numeric=False, rank=2),
                ),
                rows,
                "worst: found by ascent, so the worst case is no less. ρ: radius of the ball around the weights in "
                "which the loss was looked at; σ: size of the noise on each weight; adaptive: both in proportion to "
                "the weights. rescaling: whether the measure changes when a ReLU layer is multiplied by a number and "
                "the next one divided by it, which leaves the function as it is. model: the worst case by a quadratic "
                "model of the loss.",
            )
        )
    flatness = result.relative_flatness
    if flatness is not None and flatness.layers:
        blocks.append(
            Table(
                "Relative flatness by weight",
                (Column("weight", numeric=False), Column("value ± s.e.", rank=0)),
                [(f.name, Measured(f.value, f.standard_error)) for f in flatness.layers],
                "Curvature times size of the weights, Σ ⟨w_s, w_s'⟩ tr H_{s,s'} over the neurons; small is flat.",
            )
        )
        blocks.append(_bars(flatness))
    return blocks


def _bars(flatness: RelativeFlatness) -> Bars:
    """The weights with the largest figures, in the order of the network."""
    largest = sorted(flatness.layers, key=lambda f: -abs(f.value))[:_BARS]
    shown = [f for f in flatness.layers if f in largest]
    errors = [f.standard_error or 0.0 for f in shown]
    group = BarGroup("relative flatness", [f.value for f in shown], errors)
    title = "Relative flatness by weight, the largest"
    if len(shown) == len(flatness.layers):
        title = "Relative flatness, by weight"
    return Bars(title, "relative flatness", [f.name for f in shown], [group])


def _rows(result: SharpnessResult) -> list[_Row]:
    rows: list[_Row] = []
    for name, worst in (("worst", result.worst), ("worst, adaptive", result.worst_adaptive)):
        if worst is not None:
            found = "NaN or Inf"
            if worst.found is not None:
                found = f"≥ {at_least(max(0.0, worst.found - worst.found_residual))}"
            rows.append(
                (
                    name,
                    found,
                    f"ρ {worst.rho:g}",
                    _said(worst.changes_by_rescaling),
                    _model(worst),
                )
            )
    for name, mean in (
        ("average", result.average),
        ("average, adaptive", result.average_adaptive),
    ):
        if mean is not None:
            value = Measured(mean.value, mean.standard_error)
            size = f"σ {number(mean.sigma, 2)}"
            rows.append((name, value, size, _said(mean.changes_by_rescaling), None))
    for name, width in (
        ("PAC-Bayes σ", result.pac_bayes),
        ("PAC-Bayes σ, adaptive", result.pac_bayes_adaptive),
    ):
        if width is not None:
            value = Measured(width.value, width.standard_error)
            size = f"rise {width.rise:g}"
            rows.append((name, value, size, _said(width.changes_by_rescaling), None))
    shards = result.m_sharpness
    if shards is not None:
        value = Measured(shards.value, shards.standard_error)
        size = f"ρ {shards.rho:g}, m {shards.shard}"
        rows.append(("m-sharpness", value, size, _said(shards.changes_by_rescaling), None))
    for name, plain in (
        ("relative flatness", result.relative_flatness),
        ("Fisher-Rao norm", result.fisher_rao),
    ):
        if plain is not None:
            value = Measured(plain.value, plain.standard_error)
            rows.append((name, value, None, _said(plain.changes_by_rescaling), None))
    return rows


def _said(changes: bool) -> str:
    return "changes it" if changes else "leaves it"


def _model(worst: WorstCase) -> str | None:
    if worst.quadratic_upper is None:
        return None
    return f"{at_least(worst.quadratic_lower or 0.0, 2)} to {at_most(worst.quadratic_upper, 2)}"
