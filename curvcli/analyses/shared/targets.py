"""What is inspected when several targets are named: checkpoints, directories of them, target files."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from curvcli.analyses.shared.question import Targets
from curvcli.analyses.shared.settings import resolve_target
from curvcli.errors import UsageError
from curvcli.loading.spec import TargetSpec

_WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
# Steps before epochs, which hold many of them.
_STEPS = tuple(
    re.compile(rf"(?:{words})[-_=]?(\d+)", re.IGNORECASE)
    for words in (r"global_?step|steps?|iter(?:ation)?s?|checkpoint|ckpt", "epochs?")
)
_TRAINING = (".pt", ".pth", ".ckpt")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")


class Named(NamedTuple):
    """One target: its settings, the options of analyses that its file sets, and how it was named."""

    name: str
    spec: TargetSpec
    tables: dict[str, dict[str, Any]]
    file: str | None
    """The target file that its settings come from."""
    problem: UsageError | None = None
    """Why there are no settings."""


def resolve_targets(
    arguments: list[str],
    flags: dict[str, Any],
    commands: tuple[str, ...],
    kind: Targets,
    project: bool | None = None,
) -> list[Named]:
    """The targets that arguments name; a checkpoint takes the settings of the target file before it.

    A target file that is followed by checkpoints in a series, or by two of a pair, only gives their settings.

    Of several whose files are looked at one by one, a wrong one is named with its problem, and the others stay.

    Raises:
        UsageError: too many or too few, a wrong setting, or a directory without checkpoints.
    """
    if not arguments and kind in ("many", "series"):
        arguments_: list[str | None] = [None]
    else:
        arguments_ = [p for a in arguments for p in (series_in(a) if kind == "series" else [a])]
    files = [a for a in arguments_ if a is not None and Path(a).suffix == ".toml"]
    only_settings = len(files) == 1 and arguments_[0] == files[0] and (
        (kind == "series" and len(arguments_) > 1) or (kind == "pair" and len(arguments_) == 3)
    )  # fmt: skip
    found, file = [], None
    for index, argument in enumerate(arguments_):
        if argument is not None and Path(argument).suffix == ".toml":
            file = argument
            if only_settings and index == 0:
                continue
            try:
                spec, tables = resolve_target(argument, flags, commands, project)
            except UsageError as problem:
                if kind != "many" or len(arguments_) == 1:
                    raise
                found.append(Named(argument, TargetSpec(), {}, file, problem))
                continue
        else:
            override = flags if argument is None else {"checkpoint": argument, **flags}
            spec, tables = resolve_target(file, override, commands, project)
        found.append(Named(argument or spec.checkpoint or "target", spec, tables, file))
    if kind == "pair" and len(found) not in (1, 2):
        raise UsageError(
            f"two targets are compared, not {len(found)}",
            "name two checkpoints; a target file before them gives their settings",
        )
    return found


def step_of(name: str) -> int | None:
    """The training step in a checkpoint's name: the number after a known word, else the only number."""
    stem = Path(name).name
    for suffix in _WEIGHTS:
        stem = stem.removesuffix(suffix)
    named = next((found for words in _STEPS if (found := words.search(stem))), None)
    if named:
        return int(named[1])
    # A single whole number can be nothing else; of several, one may be a loss or a date.
    numbers = re.findall(r"(?<![\d.])\d+(?![\d.])", stem)
    return int(numbers[0]) if len(numbers) == 1 and not re.search(r"\d\.\d", stem) else None


def series_in(argument: str) -> list[str]:
    """The checkpoints in a directory, by step; anything else as it is."""
    folder = Path(argument)
    if (
        not folder.is_dir()
        or (folder / "config.json").exists()
        or list(folder.glob("*.index.json"))
    ):
        return [argument]
    entries = [
        entry for entry in folder.iterdir()
        if (entry.suffix in _WEIGHTS or _is_checkpoint_folder(entry))
        and not _SHARD.search(entry.name) and not entry.name.startswith(".")
    ]  # fmt: skip
    # Files of torch.save may say their step inside.
    numbered = [e for e in entries if step_of(e.name) is not None or e.suffix in _TRAINING]
    if all(entry.is_dir() and step_of(entry.name) is None for entry in entries):
        runs = [e for e in sorted(folder.iterdir()) if e.is_dir() and _is_checkpoint_folder(e)]
        if runs:
            return [path for run in runs for path in series_in(str(run))]
    if not numbered:
        raise UsageError(
            f"the directory {argument!r} holds no checkpoint with a step number in its name",
            "name the checkpoints in order, or call them step_100.safetensors and so on",
        )
    return [str(e) for e in sorted(numbered, key=lambda e: (step_of(e.name) or 0, e.name))]


def _is_checkpoint_folder(path: Path) -> bool:
    return path.is_dir() and any(f.suffix in _WEIGHTS for f in path.iterdir())
