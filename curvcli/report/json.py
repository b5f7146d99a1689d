"""The answer as strict JSON: a number that is not finite is null."""

from typing import Any

import msgspec

from curvcli.report.data import Envelope


def render(envelope: Envelope[Any]) -> str:
    """The envelope, indented, keys in the order of their declaration."""
    try:
        encoded = msgspec.json.encode(envelope)
    except UnicodeEncodeError:  # names of files need not be Unicode
        encoded = msgspec.json.encode(_escaped(msgspec.to_builtins(envelope)))
    return msgspec.json.format(encoded, indent=2).decode() + "\n"


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_escaped(k): _escaped(v) for k, v in value.items()}
    return [_escaped(v) for v in value] if isinstance(value, list | tuple) else value
