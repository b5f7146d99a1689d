"""What the shell completes: losses, layers of a target, files of the right kind.

Nothing here imports torch, or runs what is in a pickle.
"""

import json
import pickletools
import struct
import tomllib
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

from curvcli.analyses.landscape.command import ALONG
from curvcli.analyses.registry import NAMES
from curvcli.analyses.sharpness.command import MEASURES

LOSSES = (
    "cross_entropy", "mse", "l1", "huber", "bce_with_logits", "nll", "token_cross_entropy", "contrastive", "model",
    "output",
)  # fmt: skip
WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pt2")
DATA = (
    ".npz", ".npy", ".safetensors", ".pt", ".csv", ".parquet", ".txt", ".jsonl",
)  # fmt: skip
# Bytes of a header or a pickle that are looked at.
_LONGEST = 20_000_000

Completer = Callable[[typer.Context, list[str], str], list[str]]


def completer(name: str) -> Completer | None:
    """Of the option or argument of that name."""
    return {
        "target": _files((".toml", *WEIGHTS)),
        "checkpoint": _files(WEIGHTS),
        "loss": _among(LOSSES),
        "data": _files(DATA),
        "other_data": _files(DATA),
        "to": _files(WEIGHTS),
        "since": _files(WEIGHTS),
        "optimizer": _files(WEIGHTS),
        "along": _among(ALONG),
        "measure": _among(MEASURES),
        "params": _layers(leaves=True),
        "wrt": _layers(leaves=False),
        "of": _layers(leaves=False),
        "device": _among(("auto", "cpu", "cuda", "mps")),
        "command": _among((*NAMES, "target")),
    }.get(name)


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a file of weights, by its header or by the texts in its pickle; else none."""
    try:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, _LONGEST)))
            return sorted(n for n in header if n != "__metadata__")
        with zipfile.ZipFile(path) as archive:
            inner = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            with archive.open(inner) as entry:
                content = entry.read(_LONGEST)
        texts = [a for _, a, _ in pickletools.genops(content) if isinstance(a, str)]
    except (OSError, ValueError, StopIteration, struct.error, zipfile.BadZipFile):
        return []
    # Names of classes in a pickle have a blank in them.
    return sorted({t for t in texts if "." in t and " " not in t and all(t.split("."))})


def _among(choices: Iterable[str]) -> Completer:
    def complete(_context: typer.Context, _words: list[str], begun: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(begun)]

    return complete


def _files(suffixes: tuple[str, ...]) -> Completer:
    def complete(_context: typer.Context, _words: list[str], begun: str) -> list[str]:
        folder, _, start = begun.rpartition("/")
        place = Path(f"{folder}/" if folder or begun.startswith("/") else ".")
        before = begun[: len(begun) - len(start)]
        try:
            entries = sorted(place.iterdir())
        except OSError:
            return []
        return [
            before + entry.name + ("/" if entry.is_dir() else "")
            for entry in entries
            if entry.name.startswith(start)
            and (start.startswith(".") or not entry.name.startswith("."))
            and (entry.is_dir() or entry.suffix in suffixes)
        ]

    return complete


def _layers(*, leaves: bool) -> Completer:
    def complete(context: typer.Context, _words: list[str], begun: str) -> list[str]:
        found: dict[str, None] = {}
        # An option that still lacks its value leaves the target among the words that were not taken.
        for path in _checkpoints(context.params.get("target") or [*context.args]):
            for name in tensor_names(path):
                found[name if leaves else name.rpartition(".")[0]] = None
        return [name for name in found if name.startswith(begun)]

    return complete


def _checkpoints(target: Any) -> list[Path]:
    """The files of weights that a command line names, directly or by a target file."""
    found = []
    for word in target if isinstance(target, list | tuple) else [target or ""]:
        path = Path(word)
        if path.suffix != ".toml":
            found.append(path)
            continue
        try:
            named = tomllib.loads(path.read_text("utf-8")).get("checkpoint")
        except (OSError, ValueError):
            continue
        if isinstance(named, str):
            found.append(path.parent / named)
    return found
