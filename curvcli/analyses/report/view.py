"""How a report is shown: cards, then a section for each answer."""

from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from curvcli.analyses.registry import get
from curvcli.analyses.report.result import Part, ReportResult
from curvcli.report.data import (
    Block,
    Card,
    Cards,
    Cell,
    Column,
    Facts,
    Section,
    Sentence,
    Table,
    TargetInfo,
)
from curvcli.report.head import called, fit_line

# What the analyses on the cards are about, in the order of the cards.
CARDS = {
    "compare": "Comparison",
    "track": "Training run",
    "hessian": "Curvature",
    "saddle": "Critical point",
    "gradients": "Signals",
    "jacobian": "Jacobian",
    "backprop": "Gradient check",
    "lr": "Learning rate",
}


def view(result: ReportResult) -> list[Block]:
    """What was inspected, the cards, what has no answer, and the sections."""
    sides = list(dict.fromkeys(part.target for part in result.parts))
    blocks: list[Block] = []
    shared = _shared_notes(result.parts)
    compared = result.overall is not None and result.overall.analysis == "compare"
    for letter, info in zip("AB", result.targets, strict=False):
        line = fit_line(info)
        if line is not None:
            name = f"{letter}, {called(info)}" if compared else called(info)
            blocks.append(Sentence(f"{name}: {line[0].lower()}{line[1:]}"))
    overall = [result.overall] if result.overall is not None else []
    if cards := _cards([*overall, *result.parts], len(sides) > 1):
        blocks.append(Cards(cards))
    blocks += [_section(part, part.analysis) for part in overall]
    parts = [
        replace(part, notes=[n for n in part.notes if n not in shared]) for part in result.parts
    ]
    if len(sides) > 1:
        blocks += _beside(parts)
    else:
        blocks += [_section(part, part.analysis) for part in parts]
    if result.left_out:
        columns = (
            Column("analysis", numeric=False, rank=0),
            *([Column("of", numeric=False)] if len(sides) > 1 else []),
            Column("why", numeric=False, rank=0, folds=True),
        )
        rows: list[tuple[Cell, ...]] = [
            (one.analysis, *([one.target] if len(sides) > 1 else []), one.reason)
            for one in result.left_out
        ]
        blocks.append(Table("Without an answer", columns, rows))
    if shared:
        blocks += [Sentence(f"All answers: {note}.") for note in shared]
    return [*blocks, *(_inspected(info) for info in result.targets)]


def about(result: ReportResult) -> str:
    """The checkpoints by name; of a series how many there are, and the last."""
    names = " and ".join(called(info) for info in result.targets)
    if result.overall is not None and result.overall.analysis == "track":
        return f"{len(_result(result.overall).points)} checkpoints up to {names}"
    return names


def _shared_notes(parts: list[Part]) -> list[str]:
    """What each of several answers notes, which is said once."""
    if len(parts) < 2:
        return []
    return [note for note in parts[0].notes if all(note in part.notes for part in parts)]


def _cards(parts: list[Part], several: bool) -> list[Card]:
    found = []
    for name, label in CARDS.items():
        for part in parts:
            if part.analysis == name and part.verdict is not None:
                whose = several and name not in ("compare", "track")
                told = f"{label}, {_short(part.target)}" if whose else label
                found.append(Card(told, part.verdict, name))
    return found


def _beside(parts: list[Part]) -> list[Block]:
    """For each analysis the answers of both checkpoints in one section."""
    found: list[Block] = []
    for name in dict.fromkeys(part.analysis for part in parts):
        same = [part for part in parts if part.analysis == name]
        sides = [_section(part, f"{name}: {_short(part.target)}", "") for part in same]
        found.append(Section(name, None, sides, meaning=get(name).meaning))
    return found


def _section(part: Part, title: str, meaning: str | None = None) -> Section:
    question = get(part.analysis)
    return Section(
        title,
        part.verdict,
        question.view(_result(part)),
        part.findings,
        part.notes,
        part.command,
        question.meaning if meaning is None else meaning,
    )


def _result(part: Part) -> Any:
    """The answer's own type, also where it was read from JSON."""
    if isinstance(part.result, dict):
        return msgspec.convert(part.result, get(part.analysis).result, strict=False)
    return part.result


def _short(path: str) -> str:
    """The last two parts of a path, by which checkpoints of different runs are told apart."""
    return "/".join(Path(path).parts[-2:])


def _inspected(info: TargetInfo) -> Facts:
    rows: list[tuple[str, Cell]] = [
        ("checkpoint", info.checkpoint),
        ("its SHA-256", info.checkpoint_sha256),
        ("model", info.model),
        ("data", info.data),
        ("data's SHA-256", info.data_sha256),
        ("samples", info.samples),
        ("loss", info.loss),
        ("mode", info.mode),
        ("device", info.device),
        ("dtype", info.dtype),
        ("seed", str(info.seed)),
    ]
    return Facts([(k, v) for k, v in rows if v is not None], "What was inspected")
