"""Zip archives as checkpoints use them: what kind it is, and whether it is safe to read on.

PyTorch files, ``.pt2`` programs, TorchScript and ``.npz`` are all zip archives. Before any of their readers is
let loose, sizes and names in the table of contents are held against what an honest writer produces.
"""

import json
import re
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from curvcli.errors import CheckpointError, CurvError
from curvcli.files import check_regular
from curvcli.machine.memory import not_of_memory

EXPANSION_BYTES = 1 << 30
"""What a compressed archive may always expand to."""
EXPANSION_FACTOR = 16
"""Beyond `EXPANSION_BYTES`, at most so many times its own size."""
ENTRIES = 200_000
"""Entries of an archive."""
JSON_BYTES = 100_000_000
"""Size of a JSON file: an index, a configuration, a program's graph."""

Kind = Literal["torch", "program", "torchscript"]


def archive_kind(path: Path) -> Kind:
    """What writes archives with such entries.

    Raises:
        CheckpointError: the archive is damaged, or its table of contents is refused.
    """
    names = check_archive(path, CheckpointError)
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner or "serialized_exported_program.json" in names:
        return "program"
    if "constants.pkl" in inner and any(n.startswith("code/") for n in inner):
        return "torchscript"
    return "torch"


def check_archive(path: Path, error: type[CurvError]) -> list[str]:
    """Names of the entries, after sizes and names were checked.

    Args:
        path: the archive.
        error: the kind of error to raise.

    Raises:
        CurvError: damaged; too many entries; more expanded than `EXPANSION_BYTES` and
            `EXPANSION_FACTOR` allow; entries that overlap, leave the archive, link or occur twice.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as problem:  # a damaged table of contents makes zipfile raise anything
        not_of_memory(problem)
        raise error(
            f"{path.name} is a truncated or damaged zip archive: {' '.join(str(problem).split())[:160]}",
            "copy it again",
        ) from None
    if len(entries) > ENTRIES:
        raise error(
            f"{path.name} has {len(entries)} entries, more than {ENTRIES}", "check what the file is"
        )
    expanded = sum(e.file_size for e in entries)
    allowed = max(EXPANSION_BYTES, EXPANSION_FACTOR * size)
    if expanded > allowed:
        raise error(
            f"{path.name} would expand from {size} to {expanded} bytes; {allowed} are allowed",
            "this is how zip bombs look; if it is none, save it without compression",
        )
    if sum(e.compress_size for e in entries) > size:
        raise error(
            f"{path.name}: its entries overlap: together they are larger than the file",
            "this is how zip bombs look; save it again",
        )
    names = [e.filename for e in entries]
    _check_names(path, entries, error)
    return names


def _check_names(path: Path, entries: Iterable[zipfile.ZipInfo], error: type[CurvError]) -> None:
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            raise error(
                f"{path.name} has an entry {name!r} outside the archive", "get it from its author"
            )
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise error(f"{path.name} has a symbolic link {name!r}", "save it again without links")
        if name in seen:
            raise error(f"{path.name} has two entries {name!r}", "save it again")
        seen.add(name)


def check_entries(names: Iterable[str], honest: re.Pattern[str], name: str, hint: str) -> None:
    """Hold the entries of an archive that holds a program against those that its writer makes.

    PyTorch finds entries whatever their case, so two that differ by nothing else are one to it.

    Args:
        names: of the entries, without the folder that they all lie in.
        honest: what a writer calls them, in ASCII.
        name: of the file, for messages.
        hint: what to do.

    Raises:
        CheckpointError: another entry, or two that differ by case only.
    """
    seen: dict[str, str] = {}
    for entry in names:
        if honest.fullmatch(entry) is None:
            raise CheckpointError(f"{name} has the entry {entry!r}, which no exporter writes", hint)
        if (other := seen.setdefault(entry.lower(), entry)) != entry:
            raise CheckpointError(
                f"{name} has the entries {other!r} and {entry!r}, which differ by case only", hint
            )


def read_json(path: Path, error: type[CurvError]) -> dict[str, Any]:
    """A JSON object from a file of at most `JSON_BYTES`.

    Raises:
        CurvError: missing, too large, not JSON, or not an object.
    """
    check_regular(path, error)
    try:
        if path.stat().st_size > JSON_BYTES:
            raise error(f"{path.name} is larger than {JSON_BYTES} bytes", "check what the file is")
        content = json.loads(path.read_text("utf-8"))
    except OSError as problem:
        raise error(f"{str(path)!r} cannot be read: {problem.strerror}", "check the path") from None
    except (ValueError, RecursionError):
        raise error(f"{path.name} is not JSON", "copy it again") from None
    if not isinstance(content, dict):
        raise error(f"{path.name} is not a JSON object", "copy it again")
    return content
