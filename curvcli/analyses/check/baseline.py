"""A baseline: the figures of an earlier run, kept in a JSON file beside the project."""

import os
from collections.abc import Collection
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from curvcli.analyses.shared.figures import Figure
from curvcli.errors import OutputError, UsageError
from curvcli.files import check_regular, folder_locked, write_whole


class BaselineTarget(Struct, frozen=True):
    """The figures of one target."""

    checkpoint_sha256: str | None
    data_sha256: str | None
    figures: list[Figure]


class BaselineFile(Struct, frozen=True):
    """What a baseline file holds."""

    schema: Literal["curvcli-baseline/1"] = "curvcli-baseline/1"
    targets: Annotated[
        dict[str, BaselineTarget], Meta(description="by path relative to the file")
    ] = {}


def read_baseline(path: Path, may_be_missing: bool) -> BaselineFile:
    """The baseline in ``path``.

    Raises:
        UsageError: it is missing (unless it ``may_be_missing``), or no baseline.
    """
    if may_be_missing and not path.exists():
        return BaselineFile()
    if not path.exists():
        raise UsageError(f"there is no baseline {str(path)!r}", "make it by --update-baseline")
    check_regular(path, UsageError, "baseline")
    try:
        return msgspec.json.decode(path.read_bytes(), type=BaselineFile)
    except OSError as error:
        raise UsageError(
            f"the baseline {str(path)!r} cannot be read: {error.strerror}",
            "make it by --update-baseline",
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{str(path)!r} is not a baseline of curvcli: {error}", "make it by --update-baseline"
        ) from None


def write_baseline(
    path: Path, updated: dict[str, BaselineTarget], renamed: Collection[str] = ()
) -> None:
    """Write the baseline with the targets that were updated; those of others stay, also of who writes at this moment.

    Args:
        path: the file.
        updated: by name.
        renamed: names that these had before.

    Raises:
        OutputError: ``path`` cannot be written.
        UsageError: what is there by now is no baseline.
    """
    try:
        with folder_locked(path.parent):
            before = read_baseline(path, may_be_missing=True)
            kept = {name: t for name, t in before.targets.items() if name not in renamed}
            targets = dict(sorted({**kept, **updated}.items()))
            text = msgspec.json.format(msgspec.json.encode(BaselineFile(targets=targets)), indent=2)
            write_whole(path, text + b"\n")
    except (OSError, UnicodeEncodeError) as error:
        raise OutputError(
            f"the baseline {str(path)!r} cannot be written: {getattr(error, 'strerror', error)}",
            "name another file by --baseline",
        ) from None


def entry_of(key: str, before: BaselineFile, path: Path, others: Collection[str]) -> str | None:
    """The name under which a baseline has a target: its own, or that of a file of the same name that is gone.

    Folders are renamed, and baselines are moved: of what lies nowhere any more, the name with the most parts in common
    stands for the target, if there is one such.

    Args:
        key: of the target.
        before: the baseline.
        path: its file.
        others: keys of the other targets, whose entries are theirs.
    """
    if key in before.targets:
        return key
    gone = [
        name
        for name in before.targets
        if name not in others and not (path.resolve().parent / name).exists()
    ]
    common = {name: _common_end(key, name) for name in gone}
    most = max(common.values(), default=0)
    best = [name for name in gone if common[name] == most]
    return best[0] if most and len(best) == 1 else None


def _common_end(a: str, b: str) -> int:
    """How many last parts two paths share."""
    pairs = zip(reversed(Path(a).parts), reversed(Path(b).parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def key_of(target: str, path: Path) -> str:
    """The target's name in a baseline file: its path relative to that file, the same on every machine."""
    if not Path(target).exists():
        return target
    return Path(os.path.relpath(Path(target).resolve(), path.resolve().parent)).as_posix()
