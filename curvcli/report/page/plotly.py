"""Pictures as figures of Plotly: plain data, which the page's script hands to the library."""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from curvcli.errors import OutputError, printable
from curvcli.report import bars
from curvcli.report.axis import counted, few_whole
from curvcli.report.colours import CURVES
from curvcli.report.data import Bars, Chart, HeatMap, Picture, Series
from curvcli.report.names import cut_names

# A tick for each whole number.
_EACH = {"dtick": 1}
# Room above a figure, for the tools and the names of what is drawn.
_HEAD = 30
# Letters of a name beside a figure, on a phone too.
_NAME = 26
# And above one.
_LEGEND = 48


def library() -> str:
    """The library's source.

    Raises:
        OutputError: it is not installed.
    """
    found = find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise OutputError(
            "pages are drawn by plotly, which is not installed",
            "pip install 'curvcli[report]', or write a page without scripts: --static",
        )
    place = Path(next(iter(found.submodule_search_locations)))
    return (place / "package_data" / "plotly.min.js").read_text("utf-8")


def figure(block: Picture) -> dict[str, Any]:
    """Data and layout; ``logs`` are the axes that may be logarithmic."""
    if isinstance(block, Chart):
        return _chart(block)
    return _bars(block) if isinstance(block, Bars) else _map(block)


def plain(raw: str, longest: int = 48) -> str:
    """A text that Plotly shows as it is, which reads tags and entities; shortened in its middle."""
    text = printable(raw)
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[-longest // 2 :]}"
    for sign, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, name)
    return text


def _known(values: Sequence[float]) -> list[float | None]:
    return [v if math.isfinite(v) else None for v in values]


def _axis(label: str, log: bool) -> dict[str, Any]:
    """An axis whose name does not say its scale, which can be changed."""
    kind = "log" if log else "linear"
    title = {"text": plain(label), "standoff": 12}
    return {"title": title, "type": kind, "exponentformat": "power"}


def _chart(chart: Chart) -> dict[str, Any]:
    data: list[dict[str, Any]] = []
    names = _short([series.name for series in chart.series], _LEGEND)
    for index, (series, name) in enumerate(zip(chart.series, names, strict=True)):
        data += _series(series, name, CURVES[index % len(CURVES)], index)
    places = [v for s in chart.series for v in s.x]
    logs = [
        letter
        for letter, values in (
            ("x", places),
            ("y", [v for s in chart.series for v in s.y]),
        )
        if any(v > 0 for v in values) and all(v > 0 or math.isnan(v) for v in values)
    ]
    counts = not chart.log_y and all(s.mark == "bars" for s in chart.series)
    few = counts and few_whole([0.0, *(v for s in chart.series for v in s.y)])
    layout = {
        "xaxis": _axis(chart.x_label, chart.log_x) | (_EACH if counted(chart) else {}),
        "yaxis": _axis(chart.y_label, chart.log_y) | (_EACH if few else {}),
        "height": 360,
        "showlegend": len(chart.series) > 1,
        "hovermode": "x unified",
    }
    return {"data": data, "layout": layout, "logs": logs}


def _series(series: Series, name: str, colour: str, index: int) -> list[dict[str, Any]]:
    x, y = _known(series.x), _known(series.y)
    shared = {"x": x, "y": y, "name": name, "legendgroup": str(index)}
    ends = series.low is not None and series.high is not None
    if series.mark == "line":
        line = {"color": colour, "width": 2, "dash": "dash" if index else "solid"}
        own = {**shared, "mode": "lines", "line": line}
        return [*(_band(series, colour, index) if ends else []), own]
    own = {**shared, "marker": {"color": colour, "size": 7}}
    if series.mark == "bars":
        own |= {"type": "bar", "marker": {"color": colour, "opacity": 0.8}}
    else:
        own["mode"] = "markers"
    if series.low is not None and series.high is not None:
        own["error_y"] = {
            "array": _known([h - v for h, v in zip(series.high, series.y, strict=True)]),
            "arrayminus": _known([v - w for v, w in zip(series.y, series.low, strict=True)]),
            "symmetric": False,
            "color": colour,
        }
    if series.mark != "stems":
        return [own]
    stems = {
        "x": [v for place in x for v in (place, place, None)],
        "y": [v for value in y for v in (0.0, value, None)],
        "mode": "lines",
        "line": {"color": colour, "width": 1.2},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": str(index),
    }
    return [stems, own]


def _band(series: Series, colour: str, index: int) -> list[dict[str, Any]]:
    """Both edges where the curve is drawn; the second one fills the room to the first."""
    edge = {
        "mode": "lines", "line": {"width": 0, "color": colour}, "hoverinfo": "skip", "showlegend": False,
        "legendgroup": str(index),
    }  # fmt: skip
    known = [
        (x, low, high)
        for x, y, low, high in zip(
            series.x, series.y, series.low or (), series.high or (), strict=True
        )
        if all(map(math.isfinite, (x, y, low, high)))
    ]
    places = [x for x, *_ in known]
    return [
        {**edge, "x": places, "y": [low for _, low, _ in known]},
        {**edge, "x": places, "y": [high for *_, high in known], "fill": "tonexty", "fillcolor": f"{colour}33"},
    ]  # fmt: skip


def _bars(block: Bars) -> dict[str, Any]:
    names = [plain(name, 200) for name in block.names]
    # Plotly takes equal names for one: places tell them apart.
    places = list(range(len(names)))
    groups = _short([group.name for group in block.groups], _LEGEND)
    data = [
        {
            "type": "bar", "orientation": "h", "name": groups[k], "y": places, "x": _known(group.values),
            "marker": {"color": CURVES[k % len(CURVES)]}, "text": names, "textposition": "none",
            "hoverinfo": "text+x+name",
            **({} if group.errors is None else {"error_x": {"array": _known(group.errors), "color": "#888"}}),
        }
        for k, group in enumerate(block.groups)
    ]  # fmt: skip
    values = [v for g in block.groups for v in g.values if math.isfinite(v)]
    ends = {"range": list(bars.ends(block))} if block.log else {}
    layout = {
        "xaxis": _axis(block.value_label, block.log) | ends,
        "yaxis": {"tickvals": places, "ticktext": _short(block.names), "autorange": "reversed"},
        "height": 110 + _HEAD + (10 * len(block.groups) + 10) * len(names),
        "showlegend": len(block.groups) > 1,
        "barmode": "group",
    }
    positive = any(v > 0 for v in values) and all(v >= 0 for v in values)
    return {"data": data, "layout": layout, "logs": ["x"] if positive else []}


def _short(names: Sequence[str], longest: int = _NAME) -> list[str]:
    return [plain(name, len(name)) for name in cut_names(names, longest)]


def _map(block: HeatMap) -> dict[str, Any]:
    log = block.log and all(v > 0 or math.isnan(v) for row in block.values for v in row)
    shown = [[math.log10(v) if log else v for v in row] for row in block.values]
    shared = {"x": list(block.x), "y": list(block.y), "z": [_known(row) for row in shown]}
    label = plain(block.value_label)
    bar = {"title": {"text": f"log₁₀ {label}" if log else label, "side": "right"}}
    axes: dict[str, dict[str, Any]] = {
        "xaxis": {"title": {"text": plain(block.x_label)}},
        "yaxis": {"title": {"text": plain(block.y_label)}},
    }
    if block.y_names:
        texts = [[plain(t, 200) for t in row] for row in block.texts]
        cells = {
            **shared, "type": "heatmap", "colorscale": "Viridis", "colorbar": bar, "text": texts, "hoverinfo": "text",
        }  # fmt: skip
        axes["xaxis"] |= {"tickvals": list(block.x), "ticktext": _short(block.x_names)}
        axes["yaxis"] |= {"tickvals": list(block.y), "ticktext": _short(block.y_names)}
        axes["yaxis"]["autorange"] = "reversed"
        layout = {**axes, "height": max(260, 110 + _HEAD + 20 * len(block.y))}
        return {"data": [cells], "layout": layout, "logs": []}
    data: list[dict[str, Any]] = [
        {**shared, "type": "contour", "colorscale": "Viridis", "colorbar": bar, "ncontours": 16}
    ]
    if block.model:
        model = [[math.log10(v) if log and v > 0 else v for v in row] for row in block.model]
        data.append(
            {
                **shared, "z": [_known(row) for row in model], "type": "contour", "ncontours": 16, "showscale": False,
                "contours": {"coloring": "none"}, "line": {"dash": "dash", "color": "#fff", "width": 1},
                "name": "quadratic model", "hoverinfo": "skip",
            }
        )  # fmt: skip
    data.append(
        {
            "x": [s.x for s in block.spots], "y": [s.y for s in block.spots],
            "text": [plain(s.name) for s in block.spots], "mode": "lines+markers" if block.path else "markers",
            "marker": {"color": "#d13b2e", "size": 9, "line": {"color": "#fff", "width": 1}},
            "line": {"color": "#fff"}, "hoverinfo": "text", "showlegend": False,
        }
    )  # fmt: skip
    surface = {
        "data": [{**shared, "type": "surface", "colorscale": "Viridis", "colorbar": bar}],
        "layout": {
            "height": 520,
            "scene": {
                "xaxis": axes["xaxis"], "yaxis": axes["yaxis"], "zaxis": {"title": {"text": label}},
            },
        },
    }  # fmt: skip
    return {
        "data": data, "layout": {**axes, "height": 520, "showlegend": False}, "logs": [], "surface": surface,
    }  # fmt: skip
