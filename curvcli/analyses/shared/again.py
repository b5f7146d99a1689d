"""The command line that asks one question of a target again."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from curvcli.analyses.registry import NAMES
from curvcli.analyses.shared.settings import resolve_target
from curvcli.analyses.shared.subject import Subject
from curvcli.loading.spec import TargetSpec

_SINGULAR = {"model-args": "model-arg", "loss-args": "loss-arg"}


def again(
    name: str, subject: Subject, options: dict[str, Any], others: Sequence[str] = ()
) -> str | None:
    """The command with every setting that is not the usual one; None for objects in Python.

    Args:
        name: of the question.
        subject: the target; its settings hold for all of a series.
        options: of the question, that the target file does not have.
        others: further checkpoints of a series or pair.
    """
    if subject.live:
        return None
    spec, base, target = subject.spec, TargetSpec(), subject.spec.checkpoint
    words: list[str] = []
    if subject.file is not None and Path(subject.file).suffix == ".toml":
        base, _ = resolve_target(subject.file, {}, NAMES)
        if others:
            words = [target or ""]
        elif not _same(base.checkpoint, target):
            words = _flags("checkpoint", target)
        target = subject.file
    words = [w for w in (target, *words, *others) if w]
    for field in msgspec.structs.fields(TargetSpec):
        value = getattr(spec, field.name)
        if field.name != "checkpoint" and value != getattr(base, field.name):
            words += _flags(field.encode_name, value)
    for key, value in options.items():
        words += _flags(key.replace("_", "-"), value)
    return f"curvcli {name} {shlex.join(words)}"


def _same(one: str | None, other: str | None) -> bool:
    """Whether both name one file."""
    if one is None or other is None:
        return one is other
    return one == other or Path(one).resolve() == Path(other).resolve()


def _flags(key: str, value: Any) -> list[str]:
    flag = f"--{_SINGULAR.get(key, key)}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{key}"]
    if isinstance(value, dict):
        pairs = [
            f"{k}={v if isinstance(v, str) else msgspec.json.encode(v).decode()}"
            for k, v in value.items()
        ]
        return [word for pair in pairs for word in (flag, pair)]
    if isinstance(value, list | tuple):
        return [word for one in value for word in (flag, str(one))]
    return [] if value is None else [flag, str(value)]
