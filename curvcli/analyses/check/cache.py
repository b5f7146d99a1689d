"""Answers kept by the hash of everything that determines them; no torch, so that a hit costs no import of it.

What cannot be hashed from files is not kept. Data that Python code makes is never kept; a model, loss or objective in
Python only if its source, and all local source that it imports, uses nothing but known libraries and
does not read files, the environment or the clock (see `source_of`).
"""

import ast
import hashlib
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import msgspec

from curvcli import __version__
from curvcli.analyses.shared.question import Question
from curvcli.loading.spec import TargetSpec
from curvcli.report.data import Envelope

# Libraries whose behaviour is told by their version and their arguments.
_LIBRARIES = {"torch", "numpy", "scipy", "einops", "torchvision", "timm", "transformers"}
_PURE = {
    "__future__", "abc", "collections", "copy", "dataclasses", "enum", "functools", "itertools", "math",
    "operator", "types", "typing", "typing_extensions", "warnings",
}  # fmt: skip
# A name or attribute that reads files, the environment, the network or the clock, or runs other code.
_READS = {
    "open", "exec", "eval", "compile", "__import__", "import_module", "load", "loads", "load_state_dict_from_url",
    "loadtxt", "genfromtxt", "fromfile", "memmap", "from_file", "from_pretrained", "hub", "read", "read_text",
    "read_bytes", "environ", "getenv", "input", "urlopen", "get_dataset", "getattr", "globals", "vars",
}  # fmt: skip
_VERSIONS = (
    "torch", "numpy", "scipy", "safetensors", "msgspec", "einops", "torchvision", "timm", "transformers",
    "tokenizers", "peft", "sentence-transformers", "pyarrow", "pillow",
)  # fmt: skip
# Of an adapter of the peft library: names the model that it changes.
_ADAPTER = "adapter_config.json"
_CODE = ("model", "loss", "objective")


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
        digest.update(msgspec.json.encode([name, options], order="sorted"))
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
        digest.update(msgspec.json.encode(settings, order="sorted"))
        if self.spec.model is None and (Path(self.spec.checkpoint or "") / _ADAPTER).exists():
            raise NotKept("the adapter's base lies where the adapter says, which is not hashed")
        for name in ("data", *_CODE):
            reference = getattr(self.spec, name)
            if reference is None or Path(reference).exists():
                continue
            if name == "data":
                raise NotKept("the data is made by Python code, which cannot be hashed")
            place, colon, _ = reference.rpartition(":")
            if colon:
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
                digest.update(f"{file.relative_to(path.parent)}\0".encode())
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
            self._seen[path] = digest.hexdigest()
        return self._seen[path]

    def _source(self, place: str) -> str:
        """SHA-256 over the source of ``file.py`` or a module, with the local source that it imports."""
        if place.endswith(".py"):
            file = Path(place)
            paths = [str(file.resolve().parent), *sys.path]
        else:
            paths = [str(Path.cwd()), *sys.path]
            if place.partition(".")[0] in _LIBRARIES:
                return place  # its version is part of the key
            file = _locate(place, paths)
        digest = hashlib.sha256()
        for source in source_of(file, paths):
            digest.update(source)
        return digest.hexdigest()


def source_of(file: Path, paths: list[str]) -> Iterator[bytes]:
    """The source of a module and of the local modules that it imports.

    Raises:
        NotKept: it imports a library whose effect is not known, or could read what is not hashed.
    """
    waiting, seen = [file.resolve()], set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        try:
            content = current.read_bytes()
            tree = ast.parse(content)
        except (OSError, SyntaxError, ValueError):
            raise NotKept(f"{current.name} cannot be read as Python") from None
        yield content
        for node in ast.walk(tree):
            name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", None)
            if name in _READS:
                raise NotKept(f"{current.name} uses {name!r}, which may read what is not hashed")
            for module in _imported(node):
                top = module.partition(".")[0]
                if top in _PURE or top in _LIBRARIES:
                    continue
                if not top:
                    raise NotKept(f"{current.name} imports relative to its package")
                waiting.append(_locate(module, [str(current.parent), *paths]).resolve())


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["" if node.level else str(node.module)]
    return []


def _locate(module: str, paths: list[str]) -> Path:
    """The source file of a local top-level module, found without importing anything."""
    if "." in module or module in sys.stdlib_module_names:
        raise NotKept(f"it uses the module {module!r}, whose effect is not known")
    spec = PathFinder.find_spec(module, paths)
    origin = spec.origin if spec is not None else None
    if origin is None or not origin.endswith(".py") or "site-packages" in origin:
        raise NotKept(f"it uses the module {module!r}, whose effect is not known")
    if origin.endswith("__init__.py"):
        raise NotKept(f"it uses the package {module!r}, whose modules are not followed")
    return Path(origin)


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
    yield path
    if path.name.endswith(".index.json"):
        yield from sorted(path.parent.glob("*.safetensors"))


def lookup(key: str, question: Question) -> Envelope[Any] | None:
    """The answer that is kept under a key; one that cannot be read is as good as none."""
    try:
        content = (folder() / f"{key}.json").read_bytes()
        return msgspec.json.decode(content, type=Envelope[question.result])  # type: ignore[name-defined]
    except (OSError, msgspec.DecodeError):
        return None


def store(key: str, envelope: Envelope[Any]) -> None:
    """Keep an answer; a cache that cannot be written is no error."""
    path = folder() / f"{key}.json"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.encode(envelope))
        temporary.replace(path)
    except OSError:
        return
