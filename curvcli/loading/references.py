"""``module:attribute`` and ``file.py:attribute`` -> the Python object they name."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from curvcli.errors import CurvError, did_you_mean
from curvcli.loading.spec import is_reference
from curvcli.machine.memory import not_of_memory


def resolve(text: str, what: str, error: type[CurvError]) -> Any:
    """The object that ``text`` names. Importing it runs the module: the user named it.

    Args:
        text: ``package.module:attribute`` or ``path/file.py:attribute``.
        what: the option it came from, for messages.
        error: the kind of error to raise.
    """
    if not is_reference(text):
        raise error(
            f"{what} is {text!r}, which is not of the form module:attribute",
            "write package.module:name or path/file.py:name",
        )
    place, _, attribute = text.rpartition(":")
    module = (
        _from_file(Path(place), what, error)
        if place.endswith(".py")
        else _from_name(place, what, error)
    )
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [name for name in vars(module) if not name.startswith("_")]
        raise error(
            f"{what}: {place!r} has no attribute {attribute!r}.{did_you_mean(attribute, public)}",
            "name a class, function or object defined there",
        ) from None


def _from_file(path: Path, what: str, error: type[CurvError]) -> Any:
    path = path.resolve()
    if not path.is_file():
        raise error(f"{what}: there is no file {str(path)!r}", "check the path")
    # The file's own folder is importable, after everything else: a rich.py in it is not taken for the library.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    if known is not None:
        name = f"_curvcli_{abs(hash(path))}_{path.stem}"
        if name in sys.modules:
            return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise error(f"{what}: {str(path)!r} is not a Python file", "name a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        not_of_memory(problem)
        del sys.modules[name]
        raise error(
            f"{what}: importing {path.name} failed: {type(problem).__name__}: {' '.join(str(problem).split())}",
            "run the file with python to see where; --verbose shows the traceback",
        ) from problem
    return module


def _from_name(name: str, what: str, error: type[CurvError]) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except Exception as problem:
        not_of_memory(problem)
        raise error(
            f"{what}: importing {name!r} failed: {type(problem).__name__}: {' '.join(str(problem).split())}",
            "install it in this environment, or name the file: path/file.py:attribute",
        ) from problem
