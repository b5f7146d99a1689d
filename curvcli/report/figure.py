"""The charts of an answer as a picture, PNG, SVG or PDF, by matplotlib."""

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from curvcli.errors import OutputError, printable
from curvcli.report.chart import axis_name
from curvcli.report.colours import CURVES
from curvcli.report.data import Block, Chart, HeatMap, Series


def render(title: str, blocks: Sequence[Block], kind: str) -> bytes:
    """All charts among the blocks, one under the other.

    Raises:
        OutputError: there is no chart, or matplotlib is not installed.
    """
    charts = [block for block in blocks if isinstance(block, Chart | HeatMap)]
    if not charts:
        raise OutputError(
            "this answer has no chart to draw", "name a file that ends in .html, .md or .json"
        )
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_pdf import FigureCanvasPdf
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise OutputError(
            "pictures are drawn by matplotlib, which is not installed",
            "pip install 'curvcli[plot]', or name a file that ends in .html",
        ) from None
    heights = [3.6 if isinstance(chart, Chart) else 5.6 for chart in charts]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    figure.suptitle(printable(title), fontsize=11)
    places = figure.subplots(len(charts), squeeze=False, height_ratios=heights)[:, 0]
    for axes, chart in zip(places, charts, strict=True):
        axes.set_title(printable(chart.title), fontsize=10)
        if isinstance(chart, HeatMap):
            _map(figure, axes, chart)
            continue
        axes.set_xlabel(axis_name(chart.x_label, chart.log_x))
        axes.set_ylabel(axis_name(chart.y_label, chart.log_y))
        if chart.log_x:
            axes.set_xscale("log")
        if chart.log_y:
            axes.set_yscale("log")
        for index, series in enumerate(chart.series):
            colour = CURVES[index % len(CURVES)]
            axes.plot(series.x, series.y, color=colour, label=printable(series.name), linewidth=1.6)
            low, high = _band(series)
            if high:
                axes.fill_between(series.x, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.grid(visible=True, alpha=0.25)
        if len(chart.series) > 1:
            axes.legend(fontsize=9)
    buffer = BytesIO()
    with mpl.rc_context({"svg.hashsalt": "curvcli"}):
        if kind == "png":
            FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": "curvcli"})
        elif kind == "pdf":
            FigureCanvasPdf(figure).print_pdf(buffer, metadata={"CreationDate": None})
        else:
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


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
