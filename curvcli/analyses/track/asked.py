"""Figures of other analyses at a checkpoint, as rules of `check` name them."""

from typing import Any, NamedTuple

from msgspec import Struct

from curvcli.analyses.registry import NAMES, get
from curvcli.analyses.shared.figures import Figure, Precision, figures
from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.paths import Leaf, leaf, parsed
from curvcli.analyses.shared.spectrum import saved
from curvcli.analyses.shared.spectrum.saved import packed, unpacked
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import UsageError, did_you_mean
from curvcli.linalg.run_log import Kept, RunLog


class Asked(NamedTuple):
    """One figure that was asked for."""

    analysis: str
    leaf: Leaf


class _Found(Struct):
    """The figures of one analysis."""

    figures: list[Figure]


def asked_for(paths: list[str]) -> list[Asked]:
    """The figures that ``--figure`` names.

    Raises:
        UsageError: there is no such analysis or figure.
    """
    known = [n for n in NAMES if get(n).targets == "one" and get(n).needs == "objective"]
    found = []
    for text in paths:
        name, steps = parsed(text)
        if name not in known:
            raise UsageError(
                f"--figure: there is no analysis {name!r}.{did_you_mean(name, known)}",
                f"known: {', '.join(known)}",
            )
        found.append(Asked(name, leaf(get(name).result, steps, name)))
    return found


def figures_at(
    member: Subject, asked: list[Asked], place: int, journal: Journal, log: RunLog
) -> list[Figure]:
    """All of them at one checkpoint; each analysis is run once, with the options of the target file.

    Raises:
        CurvError: an analysis has no answer.
    """
    found: list[Figure] = []
    for name in dict.fromkeys(one.analysis for one in asked):
        if journal.stop() is not None:
            break
        leaves = [one.leaf for one in asked if one.analysis == name]

        def compute(name: str = name, leaves: list[Leaf] = leaves) -> Kept:
            return {"figures": packed(_Found(_measured(member, name, leaves, journal)))}

        options = member.tables.get(name, {})
        key = f"{member.fingerprint()} {member.spec.seed} {place} {name} {leaves} {options}"
        found += unpacked(saved.step(log, journal, key, compute)["figures"], _Found).figures
    return found


def _measured(member: Subject, name: str, leaves: list[Leaf], journal: Journal) -> list[Figure]:
    part = journal.part(f"{member.name}: {name}: ")
    where = f"[{name}] in the target file"
    answer: Any = get(name).ask(member, member.tables.get(name, {}), part, where)
    if not answer.complete:
        journal.cut_short()
    journal.gather(part, member.name)
    precision = Precision(dtype=str(member.objective.dtype).removeprefix("torch."))
    try:
        return [f for path in leaves for f in figures(answer.result, path, name, precision)]
    except LookupError as missing:
        raise UsageError(f"--figure: {missing.args[0]}") from None
