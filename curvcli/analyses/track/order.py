"""Which checkpoints are points of a series, in which order: by what the files say, then by their names."""

import re
from pathlib import Path
from typing import NamedTuple

from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.shared.targets import step_of
from curvcli.loading.checkpoints.training import Training, read_training

# Copies of a checkpoint: averaged, or cast to another type.
_COPY = re.compile(
    r"(?:^|[-_.])(ema|swa|avg|averaged|cast|bf16|fp16|half|int8|quantized)(?:[-_.]|$)", re.I
)


class Member(NamedTuple):
    """One checkpoint of a series."""

    subject: Subject
    run: str | None
    """The folder of its run, where there are several."""
    step: int | None
    training: Training | None


def ordered(members: list[Subject], journal: Journal) -> list[Member]:
    """The points of each run by step, where all have one; repeats of a file or a step, and copies, are left out."""
    members = _once(members, journal)
    copies = [m.name for m in members if len(members) > 1 and _COPY.search(Path(m.name).name)]
    if copies and len(copies) < len(members):
        journal.note(f"averaged or cast copies are no points of the series: {', '.join(copies)}")
        members = [m for m in members if m.name not in copies]
    folders = {str(Path(m.name).parent) for m in members}
    found = [_member(m, len(folders) > 1) for m in members]
    runs = dict.fromkeys(m.run for m in found)
    kept = []
    for run in runs:
        series = [m for m in found if m.run == run]
        if all(m.step is not None for m in series):  # the shell sorts step_10 before step_2
            series.sort(key=lambda m: m.step or 0)
        kept += _without_repeats(series, journal)
    return kept


def _once(members: list[Subject], journal: Journal) -> list[Subject]:
    """Each file once, where it is named first."""
    kept: dict[str, Subject] = {}
    for index, member in enumerate(members):
        path = member.spec.checkpoint
        key = str(Path(path).resolve()) if path is not None else str(index)
        if key in kept:
            journal.note(f"{member.name} is named twice and counts once")
        kept.setdefault(key, member)
    return list(kept.values())


def _member(subject: Subject, several: bool) -> Member:
    training = None
    if subject.spec.checkpoint is not None:
        training = read_training(Path(subject.spec.checkpoint), subject.spec.unsafe_pickle)
    inside = (training.step if training.step is not None else training.epoch) if training else None
    step = inside if inside is not None else step_of(subject.name)
    return Member(subject, str(Path(subject.name).parent) if several else None, step, training)


def _without_repeats(series: list[Member], journal: Journal) -> list[Member]:
    """Of files that say the same step inside, the one that has it in its name."""
    kept: list[Member] = []
    for member in series:
        twin = next(
            (k for k in kept if member.training and k.training and k.step == member.step is not None),
            None,
        )  # fmt: skip
        if twin is None:
            kept.append(member)
            continue
        worse = twin if step_of(twin.subject.name) is None else member
        if worse is twin:
            kept[kept.index(twin)] = member
        journal.note(f"{worse.subject.name} repeats step {member.step} and is left out")
    return kept
