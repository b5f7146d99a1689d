"""Blocks as one self-contained HTML page: no scripts, nothing fetched."""

from collections.abc import Sequence
from html import escape

from curvcli.errors import printable
from curvcli.report import heat_map
from curvcli.report.chart import svg
from curvcli.report.colours import ATTENTION, BAD, GOOD
from curvcli.report.data import (
    MARKS,
    Bar,
    Block,
    Cell,
    Chart,
    Facts,
    Finding,
    Headline,
    HeatMap,
    Sentence,
    State,
    Table,
)
from curvcli.report.numbers import text

_STYLE = (
    f":root {{ color-scheme: light dark; --line: #8884; --good: {GOOD}; --bad: {ATTENTION}; --error: {BAD}; }}"
    """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin-top: 1.8rem; }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td { overflow-wrap: anywhere; } .good { color: var(--good); } .bad, .warning { color: var(--bad); }
.headline { font-weight: 600; } .attention { color: var(--bad); } .headline.bad, .state.bad { color: var(--error); }
.bar { height: .8em; background: #4a90d9; }
.error { color: var(--error); } .dim { opacity: .7; } footer { margin-top: 2rem; }
"""
)


def render(
    title: str,
    blocks: Sequence[Block],
    findings: Sequence[Finding],
    footer: str,
    headline: Headline | None = None,
) -> str:
    """A whole page."""
    body = [f"<h1>{_text(title)}</h1>", fragment(blocks, findings, headline)]
    body.append(f'<footer class="dim">{_text(footer)}</footer>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def fragment(
    blocks: Sequence[Block], findings: Sequence[Finding], headline: Headline | None = None
) -> str:
    """The content of a page without its frame."""
    body = []
    if headline is not None:
        told = f"{MARKS[headline.level]} {_text(headline.sentence)}"
        body.append(f'<p class="headline {headline.level}">{told}</p>')
    body += [_block(block) for block in blocks]
    if findings:
        body.append("<h2>Findings</h2><ul>")
        body += [
            f'<li><b class="{f.severity}">{f.severity}</b> {_text(f.message)} <code>{_text(f.rule)}</code></li>'
            for f in findings
        ]
        body.append("</ul>")
    return "\n".join(body)


def _block(block: Block) -> str:
    if isinstance(block, Sentence):
        return f'<p class="{block.tone}">{_text(block.text)}</p>'
    if isinstance(block, Facts):
        rows = "".join(
            f'<tr><td class="dim">{_text(label)}</td><td>{_text(text(value))}</td></tr>'
            for label, value in block.rows
        )
        heading = f"<h2>{_text(block.title)}</h2>" if block.title else ""
        return f"{heading}<table>{rows}</table>"
    if isinstance(block, Chart):
        return f"<h2>{_text(block.title)}</h2>{svg(block)}"
    if isinstance(block, HeatMap):
        return f"<h2>{_text(block.title)}</h2>{heat_map.svg(block)}"
    return _table(block)


def _table(block: Table) -> str:
    classes = [' class="n"' if c.numeric else "" for c in block.columns]
    head = "".join(
        f"<th{k}>{_text(c.name)}</th>" for c, k in zip(block.columns, classes, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(f"<td{k}>{_cell(cell)}</td>" for cell, k in zip(row, classes, strict=True))
        + "</tr>"
        for row in block.rows
    )
    caption = f'<p class="dim">{_text(legend)}</p>' if (legend := block.legend()) else ""
    return f"<h2>{_text(block.title)}</h2><table><tr>{head}</tr>{rows}</table>{caption}"


def _cell(cell: Cell) -> str:
    if isinstance(cell, Bar):
        return f'<div class="bar" style="width:{10 * cell.share:.2f}rem"></div>'
    if isinstance(cell, State):
        return f'<span class="state {cell.level}">{_text(cell.text)}</span>'
    return _text(text(cell))


def _text(raw: str) -> str:
    return escape(printable(raw))
