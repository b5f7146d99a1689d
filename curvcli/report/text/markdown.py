"""Blocks as GitHub-flavoured Markdown."""

from collections.abc import Sequence

from curvcli.errors import printable
from curvcli.report import heat_map
from curvcli.report.chart import as_text
from curvcli.report.data import (
    MARKS,
    Block,
    Chart,
    Facts,
    Finding,
    Headline,
    HeatMap,
    Sentence,
    Table,
)
from curvcli.report.numbers import text


def render(
    title: str,
    blocks: Sequence[Block],
    findings: Sequence[Finding],
    headline: Headline | None = None,
) -> str:
    """A section with the headline, the blocks and the findings."""
    parts = [f"## {_escape(title)}"]
    if headline is not None:
        parts.append(f"**{MARKS[headline.level]} {_escape(headline.sentence)}**")
    for block in blocks:
        if isinstance(block, Sentence):
            parts.append(_escape(block.text))
        elif isinstance(block, Chart):
            parts.append(f"### {_escape(block.title)}\n\n```text\n{as_text(block)}\n```")
        elif isinstance(block, HeatMap):
            drawn = heat_map.as_text(block)
            parts.append(f"### {_escape(block.title)}\n\n```text\n{drawn}\n```")
        elif isinstance(block, Facts):
            parts.append(_grid(block.title, ("", ""), ("left", "left"), block.rows))
        else:
            parts.append(_from_table(block))
    if findings:
        parts.append(
            "\n".join(f"- **{f.severity}** {_escape(f.message)} `{f.rule}`" for f in findings)
        )
    return "\n\n".join(parts) + "\n"


def _from_table(block: Table) -> str:
    names = tuple(c.name for c in block.columns)
    sides = tuple("right" if c.numeric else "left" for c in block.columns)
    grid = _grid(block.title, names, sides, block.rows)
    caption = block.legend()
    return f"{grid}\n\n{_escape(caption)}" if caption else grid


def _grid(
    title: str | None, names: Sequence[str], sides: Sequence[str], rows: Sequence[Sequence[object]]
) -> str:
    lines = [f"### {_escape(title)}", ""] if title else []
    lines.append(_row(names))
    lines.append(_row(["---:" if side == "right" else ":---" for side in sides], escape=False))
    lines += [_row([text(cell) for cell in row]) for row in rows]  # type: ignore[arg-type]
    return "\n".join(lines)


def _row(cells: Sequence[str], escape: bool = True) -> str:
    return "| " + " | ".join(_escape(c) if escape else c for c in cells) + " |"


def _escape(raw: str) -> str:
    escaped = printable(raw).replace("\\", "\\\\")
    for sign in "|<>*_`[]":
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped
