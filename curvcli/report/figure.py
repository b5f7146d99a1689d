"""The charts of an answer as a picture, PNG, SVG or PDF, by matplotlib."""

from collections.abc import Sequence
from io import BytesIO

from curvcli.errors import OutputError, printable
from curvcli.report.chart import axis_name
from curvcli.report.colours import CURVES
from curvcli.report.data import Block, Chart, Series


def render(title: str, blocks: Sequence[Block], kind: str) -> bytes:
    """All charts among the blocks, one under the other.

    Raises:
        OutputError: there is no chart, or matplotlib is not installed.
    """
    charts = [block for block in blocks if isinstance(block, Chart)]
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
    figure = Figure(figsize=(8, 3.6 * len(charts)), layout="constrained")
    figure.suptitle(printable(title), fontsize=11)
    for axes, chart in zip(figure.subplots(len(charts), squeeze=False)[:, 0], charts, strict=True):
        axes.set_title(printable(chart.title), fontsize=10)
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
