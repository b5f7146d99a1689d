"""A baseline: the figures of an earlier run, kept in a JSON file beside the project."""

import os
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


def write_baseline(path: Path, updated: dict[str, BaselineTarget]) -> None:
    """Write the baseline with the targets that were updated; those of others stay, also of who writes at this moment.

    Raises:
        OutputError: ``path`` cannot be written.
        UsageError: what is there by now is no baseline.
    """
    try:
        with folder_locked(path.parent):
            before = read_baseline(path, may_be_missing=True)
            targets = dict(sorted({**before.targets, **updated}.items()))
            text = msgspec.json.format(msgspec.json.encode(BaselineFile(targets=targets)), indent=2)
            write_whole(path, text + b"\n")
    except (OSError, UnicodeEncodeError) as error:
        raise OutputError(
            f"the baseline {str(path)!r} cannot be written: {getattr(error, 'strerror', error)}",
            "name another file by --baseline",
        ) from None


def key_of(target: str, path: Path) -> str:
    """The target's name in a baseline file: its path relative to that file, the same on every machine."""
    if not Path(target).exists():
        return target
    return Path(os.path.relpath(Path(target).resolve(), path.resolve().parent)).as_posix()
