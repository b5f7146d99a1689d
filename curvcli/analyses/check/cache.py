"""Answers kept by the hash of everything that determines them; no torch, so that a hit costs no import of it.

What cannot be hashed from files is not kept: data and weights that Python code makes, and code that is not in a file of
the user's. A model, loss or objective in ``file.py`` is hashed with all Python files in its folder and below.
"""

import hashlib
import json
import os
import platform
import stat
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from curvcli import __version__
from curvcli.analyses.shared.question import Question
from curvcli.files import write_whole
from curvcli.loading.spec import TargetSpec
from curvcli.report.data import Envelope

_VERSIONS = (
    "torch", "numpy", "scipy", "safetensors", "msgspec", "einops", "torchvision", "timm", "transformers",
    "tokenizers", "peft", "sentence-transformers", "pyarrow", "pillow",
)  # fmt: skip
# Of an adapter of the peft library: names the model that it changes.
_ADAPTER = "adapter_config.json"
BYTES = 100_000_000
"""Size of all answers that are kept."""
# Python files that are read for a key at most.
_SOURCES = 200


class NotKept(Exception):
    """Why an answer is not kept."""


def folder() -> Path:
    """Where answers are kept: ``$XDG_CACHE_HOME/curvcli``, by default ``~/.cache/curvcli``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "curvcli"


class TargetKey:
    """The hash of a target; files are read once for all analyses."""

    def __init__(self, spec: TargetSpec) -> None:
        self.spec = spec
        self._digest: str | None = None
        self._seen: dict[Path, str] = {}

    def key(self, name: str, options: dict[str, Any]) -> str:
        """The hash that determines the answer of an analysis.

        Raises:
            NotKept: something that determines it cannot be hashed.
        """
        if self._digest is None:
            self._digest = self._of_target()
        digest = hashlib.sha256(self._digest.encode())
        digest.update(_plain([name, options]))
        for text in _texts(options):
            if Path(text).exists():
                digest.update(self._content(Path(text)).encode())
        return digest.hexdigest()

    def _of_target(self) -> str:
        digest = hashlib.sha256()
        digest.update(
            repr((__version__, sys.version, _own_source(), _machine(), _versions())).encode()
        )
        settings = msgspec.to_builtins(self.spec)
        digest.update(_plain(settings))
        if self.spec.model is None and (Path(self.spec.checkpoint or "") / _ADAPTER).exists():
            raise NotKept("the adapter's base lies where the adapter says, which is not hashed")
        if self.spec.data is not None and not Path(self.spec.data).exists():
            raise NotKept("the data is made by Python code, which cannot be hashed")
        if self.spec.checkpoint is None:
            raise NotKept("the weights are made by Python code, which cannot be hashed")
        for reference in (self.spec.model, self.spec.loss, self.spec.objective):
            place, colon, _ = (reference or "").rpartition(":")
            if colon and not Path(str(reference)).exists():
                digest.update(self._source(place).encode())
        for text in _texts(settings):
            if Path(text).exists():
                digest.update(self._content(Path(text)).encode())
        return digest.hexdigest()

    def _content(self, path: Path) -> str:
        """SHA-256 of a file, of all files under a directory, or of an index and the shards beside it."""
        path = path.resolve()
        if path not in self._seen:
            digest = hashlib.sha256()
            for file in _files(path):
                digest.update(os.fsencode(file.relative_to(path.parent)) + b"\0")
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
            self._seen[path] = digest.hexdigest()
        return self._seen[path]

    def _source(self, place: str) -> str:
        """SHA-256 of the Python files beside and below ``file.py``."""
        file = Path(place)
        if file.suffix != ".py" or not file.is_file():
            raise NotKept(f"the code of {place!r} is no file that could be hashed")
        sources = sorted(file.resolve().parent.rglob("*.py"))
        if len(sources) > _SOURCES:
            raise NotKept(f"there are more than {_SOURCES} Python files beside {file.name}")
        return " ".join(self._content(source) for source in sources)


def _plain(value: Any) -> bytes:
    """Settings as bytes that depend on nothing else; paths in them need not be Unicode."""
    return json.dumps(msgspec.to_builtins(value), sort_keys=True).encode()


def _own_source() -> str:
    """SHA-256 of curvcli itself: a checkout changes without changing its version."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for file in sorted(root.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _machine() -> tuple[str, ...]:
    """What decides which device ``auto`` is, and how it computes."""
    cuda = sorted(str(p) for p in Path("/dev").glob("nvidia[0-9]*"))
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    settings = [f"{n}={os.environ.get(n)}" for n in names]
    return (platform.platform(), platform.processor(), str(os.cpu_count()), *cuda, *settings)


def _versions() -> list[str]:
    found = []
    for name in _VERSIONS:
        try:
            found.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested settings that could be paths."""
    if isinstance(value, str) and 0 < len(value) < 4096 and "\0" not in value:
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(f for f in path.rglob("*") if f.is_file())
        return
    if path.is_file():
        yield path
    if path.name.endswith(".index.json"):
        yield from sorted(path.parent.glob("*.safetensors"))


def lookup(key: str, question: Question) -> Envelope[Any] | None:
    """The answer that is kept under a key; one that cannot be read, or is another's, is as good as none."""
    path = folder() / f"{key}.json"
    try:
        if not (_ours(path.parent) and _ours(path)):
            return None
        head, _, content = path.read_bytes().partition(b"\n")
        if head.decode("ascii") != _head(key, content):
            return None
        os.utime(path)
        return msgspec.json.decode(content, type=Envelope[question.result])  # type: ignore[name-defined]
    except (OSError, ValueError):
        return None


def store(key: str, envelope: Envelope[Any]) -> None:
    """Keep an answer, and no more of them than `BYTES`; a cache that cannot be written is no error."""
    path = folder() / f"{key}.json"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _ours(path.parent):
            return
        content = msgspec.json.encode(envelope)
        write_whole(path, f"{_head(key, content)}\n".encode() + content)
        _evict(path.parent)
    except (OSError, UnicodeEncodeError):
        return


def _head(key: str, content: bytes) -> str:
    """What binds an answer to its key."""
    return f"curvcli-cache/2 {hashlib.sha256(key.encode() + content).hexdigest()}"


def _ours(path: Path) -> bool:
    """Whether it belongs to who runs this, and nobody else may write there."""
    status = path.lstat()
    owned = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    plain = stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
    if owned and stat.S_ISDIR(status.st_mode) and status.st_mode & 0o022:
        path.chmod(0o700)
    return owned and plain


def _evict(place: Path) -> None:
    """Forget the answers that were asked for the longest ago, beyond `BYTES`."""
    kept = sorted(((p.stat(), p) for p in place.glob("*.json")), key=lambda e: -e[0].st_mtime_ns)
    size = 0
    for status, path in kept:
        size += status.st_size
        if size > BYTES:
            path.unlink(missing_ok=True)
