"""The charts of an answer as a picture, PNG, SVG or PDF, by matplotlib."""

import itertools
import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from curvcli.errors import OutputError, printable
from curvcli.report.axis import counted
from curvcli.report.chart import axis_name
from curvcli.report.colours import CURVES
from curvcli.report.data import (
    Bar,
    Bars,
    Block,
    Chart,
    Column,
    Facts,
    HeatMap,
    Picture,
    Series,
    Table,
    flat,
)
from curvcli.report.names import cut_names
from curvcli.report.numbers import text

Drawn = Picture | Table
# Letters of a name beside a picture.
_NAME = 40


def render(title: str, blocks: Sequence[Block], kind: str) -> bytes:
    """All charts among the blocks, one under the other.

    Raises:
        OutputError: there is no chart, or matplotlib is not installed.
    """
    figure, _ = drawn(pictures(blocks))
    figure.suptitle(printable(title), fontsize=11)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = BytesIO()
    with mpl.rc_context({"svg.hashsalt": "curvcli"}):
        if kind == "png":
            FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": "curvcli"})
        elif kind == "pdf":
            FigureCanvasPdf(figure).print_pdf(buffer, metadata={"CreationDate": None})
        else:
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


def pictures(blocks: Sequence[Block]) -> list[Drawn]:
    """What there is to draw: the charts; of an answer that has none its tables, or else its figures by name.

    Raises:
        OutputError: there is nothing.
    """
    every = flat(blocks)
    found: list[Drawn] = [block for block in every if isinstance(block, Picture)]
    if not found:  # an answer of names and states is drawn as what it is
        found = [block for block in every if isinstance(block, Table) and block.rows]
    if not found:
        columns = (Column("figure", numeric=False), Column("value", numeric=False))
        found = [
            Table(facts.title or "", columns, facts.rows)
            for facts in every
            if isinstance(facts, Facts) and facts.rows
        ]
    if not found:
        raise OutputError(
            "this answer has no chart to draw", "name a file that ends in .html, .md or .json"
        )
    return found


def drawn(blocks: Sequence[Drawn]) -> tuple[Any, list[Any]]:
    """A figure of matplotlib with the pictures one under the other, and their axes.

    Raises:
        OutputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise OutputError(
            "pictures are drawn by matplotlib, which is not installed",
            "pip install 'curvcli[plot]', or name a file that ends in .html",
        ) from None
    heights = [_height(block) for block in blocks]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    places = figure.subplots(len(blocks), squeeze=False, height_ratios=heights)[:, 0]
    return figure, [draw(axes, block) for axes, block in zip(places, blocks, strict=True)]


def draw(axes: Any, block: Drawn) -> Any:
    """Draw a picture on axes of matplotlib.

    Args:
        axes: where it goes.
        block: of an answer.

    Returns:
        The axes.
    """
    axes.set_title(printable(block.title), fontsize=10)
    if isinstance(block, Table):
        _table(axes, block)
    elif isinstance(block, Bars):
        _bars(axes, block)
    elif isinstance(block, HeatMap):
        (_cells if block.y_names else _map)(axes.figure, axes, block)
    else:
        _chart(axes, block)
    return axes


def _height(block: Drawn) -> float:
    """Inches."""
    if isinstance(block, Table):
        return 0.9 + 0.26 * len(block.rows)
    if isinstance(block, Bars):
        return 1.3 + 0.13 * len(block.names) * (len(block.groups) + 1)
    if isinstance(block, HeatMap):
        return 1.6 + 0.2 * len(block.y) if block.y_names else 5.6
    return 3.6


def _chart(axes: Any, chart: Chart) -> None:
    axes.set_xlabel(axis_name(chart.x_label, chart.log_x))
    axes.set_ylabel(axis_name(chart.y_label, chart.log_y))
    if chart.log_x:
        axes.set_xscale("log")
    if chart.log_y:
        axes.set_yscale("log")
    for index, series in enumerate(chart.series):
        colour = CURVES[index % len(CURVES)]
        style = {"color": colour, "label": printable(series.name)}
        if series.mark == "line":
            axes.plot(series.x, series.y, linewidth=1.6, **style)
            low, high = _band(series)
            if high:
                axes.fill_between(series.x, low, high, color=colour, alpha=0.2, linewidth=0)
            continue
        if series.mark == "bars":
            gaps = [b - a for a, b in itertools.pairwise(series.x)]
            axes.bar(series.x, series.y, width=0.9 * min(gaps, default=1.0), alpha=0.8, **style)
        else:
            axes.plot(series.x, series.y, "o", markersize=4, **style)
        if series.mark == "stems":
            axes.vlines(series.x, 0, series.y, color=colour, linewidth=1)
        if series.low is not None and series.high is not None:
            axes.vlines(series.x, series.low, series.high, color=colour, linewidth=1.6)
    if counted(chart):
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=True, alpha=0.25)
    if len(chart.series) > 1:
        axes.legend(fontsize=9)


def _bars(axes: Any, block: Bars) -> None:
    """Horizontal, the first at the top."""
    count = len(block.groups)
    for k, group in enumerate(block.groups):
        places = [i + (k - (count - 1) / 2) * 0.8 / count for i in range(len(block.names))]
        axes.barh(
            places, group.values, height=0.8 / count, color=CURVES[k % len(CURVES)],
            label=printable(group.name), xerr=group.errors, error_kw={"linewidth": 1},
        )  # fmt: skip
    axes.set_yticks(range(len(block.names)), labels=cut_names(block.names, _NAME), fontsize=8)
    axes.invert_yaxis()
    if block.log and any(v > 0 for g in block.groups for v in g.values):
        axes.set_xscale("log")
    axes.set_xlabel(axis_name(block.value_label, block.log))
    axes.grid(visible=True, axis="x", alpha=0.25)
    if count > 1:
        axes.legend(fontsize=9)


def _cells(figure: Any, axes: Any, block: HeatMap) -> None:
    """A cell for each pair of names."""
    drawn = axes.pcolormesh(block.x, block.y, block.values, cmap="viridis", shading="nearest")
    axes.set_xticks(block.x, labels=[printable(n) for n in block.x_names], fontsize=8)
    axes.set_yticks(block.y, labels=cut_names(block.y_names, _NAME), fontsize=8)
    axes.invert_yaxis()
    figure.colorbar(drawn, ax=axes, label=printable(block.value_label))


def _table(axes: Any, block: Table) -> None:
    """Cells as text."""
    axes.set_axis_off()
    kept = [
        i for i in range(len(block.columns))
        if not any(isinstance(row[i], Bar) for row in block.rows)
    ]  # fmt: skip
    drawn = axes.table(
        [[text(row[i]) for i in kept] for row in block.rows],
        colLabels=[printable(block.columns[i].name) for i in kept],
        loc="upper center", cellLoc="left", edges="horizontal",
    )  # fmt: skip
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    drawn.auto_set_column_width(list(range(len(kept))))


def _map(figure: Any, axes: Any, block: HeatMap) -> None:
    """Filled contours with lines, spots and their path."""
    known = [v for row in block.values for v in row if math.isfinite(v)]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    axes.set_xlabel(printable(block.x_label))
    axes.set_ylabel(printable(block.y_label))
    if high > low:
        log = block.log and low > 0
        shares = [k / 16 for k in range(17)]
        levels = [low * (high / low) ** s if log else low + s * (high - low) for s in shares]
        levels[0], levels[-1] = low, high
        drawn = axes.contourf(
            block.x, block.y, block.values, levels, cmap="viridis", norm="log" if log else None
        )
        axes.contour(
            block.x, block.y, block.values, levels, colors="white", linewidths=0.5, alpha=0.6,
            norm="log" if log else None,
        )  # fmt: skip
        if block.model:
            axes.contour(
                block.x, block.y, block.model, levels, colors="black", linewidths=0.8,
                linestyles="dashed", norm="log" if log else None,
            )  # fmt: skip
            axes.plot([], [], "k--", linewidth=0.8, label="quadratic model")
            axes.legend(fontsize=8, loc="lower left")
        bar = figure.colorbar(drawn, ax=axes, label=printable(block.value_label))
        bar.set_ticks(levels[::4], labels=[f"{v:.3g}" for v in levels[::4]])
        bar.minorticks_off()
    if block.path:
        axes.plot(
            [s.x for s in block.spots], [s.y for s in block.spots], "o-", color="white",
            markeredgecolor="black", markersize=4, linewidth=1.4,
        )  # fmt: skip
    named = block.spots if not block.path else [block.spots[0], block.spots[-1]]
    for spot in named:
        axes.plot([spot.x], [spot.y], "o", color="#d13b2e", markeredgecolor="white")
        # Inside the frame.
        left = (spot.x - block.x[0]) / (block.x[-1] - block.x[0]) > 0.7
        axes.annotate(
            printable(spot.name), (spot.x, spot.y), xytext=(-6 if left else 6, 6),
            textcoords="offset points", fontsize=9, ha="right" if left else "left",
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip


def _band(series: Series) -> tuple[list[float], list[float]]:
    """The band where the curve itself is drawn."""
    if series.low is None or series.high is None:
        return [], []
    nothing = float("nan")
    drawn = [y == y for y in series.y]  # noqa: PLR0124
    return tuple(  # type: ignore[return-value]
        [v if d else nothing for v, d in zip(edge, drawn, strict=True)]
        for edge in (series.low, series.high)
    )
