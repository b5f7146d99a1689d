"""Blocks as GitHub-flavoured Markdown."""

from collections.abc import Sequence

from curvcli.errors import printable
from curvcli.report import bars, heat_map
from curvcli.report.chart import as_text
from curvcli.report.data import (
    MARKS,
    Bars,
    Block,
    Cards,
    Chart,
    Facts,
    Finding,
    Headline,
    Section,
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
    parts = [f"## {_escape(title)}", *_told(blocks, findings, headline)]
    return "\n\n".join(parts) + "\n"


def _told(
    blocks: Sequence[Block], findings: Sequence[Finding], headline: Headline | None
) -> list[str]:
    """The paragraphs of an answer, without its title."""
    parts = []
    if headline is not None:
        parts.append(f"**{MARKS[headline.level]} {_escape(headline.sentence)}**")
    parts += [part for block in blocks for part in _block(block)]
    if findings:
        parts.append(
            "\n".join(f"- **{f.severity}** {_escape(f.message)} `{f.rule}`" for f in findings)
        )
    return parts


def _block(block: Block) -> list[str]:
    if isinstance(block, Section):
        asked = [f"`{block.command}`"] if block.command else []
        head = [f"## {_escape(block.title)}"]
        return [*head, *_told(block.blocks, block.findings, block.headline), *asked]
    if isinstance(block, Cards):
        return [
            "\n".join(
                f"- **{MARKS[c.headline.level]} {_escape(c.label)}**: {_escape(c.headline.sentence)}"
                for c in block.cards
            )
        ]
    if isinstance(block, Sentence):
        return [_escape(block.text)]
    if isinstance(block, Facts):
        return [_grid(block.title, ("", ""), ("left", "left"), block.rows)]
    if isinstance(block, Table):
        return [_from_table(block)]
    if isinstance(block, Chart):
        drawn = as_text(block)
    elif block.tabled:
        return []
    else:
        drawn = bars.as_text(block) if isinstance(block, Bars) else heat_map.as_text(block)
    return [f"### {_escape(block.title)}\n\n```text\n{drawn}\n```"]


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
