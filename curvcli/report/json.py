"""The answer as strict JSON: a number that is not finite is null."""

from typing import Any

import msgspec

from curvcli.report.data import Envelope


def render(envelope: Envelope[Any]) -> str:
    """The envelope, indented, keys in the order of their declaration."""
    return msgspec.json.format(msgspec.json.encode(envelope), indent=2).decode() + "\n"
