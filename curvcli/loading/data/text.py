"""Text files -> records: plain lines or JSON lines. What a tokenizer makes of them is decided elsewhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from curvcli.errors import DataError, did_you_mean, some
from curvcli.files import check_regular

SUFFIXES = (".txt", ".jsonl")
LINE_BYTES = 64_000_000
"""Length of one line."""


def is_text(source: str) -> bool:
    """Whether ``--data`` names a text file."""
    return Path(source).suffix.lower() in SUFFIXES


def read_records(path: Path, text_key: str = "text") -> Iterator[dict[str, Any]]:
    """One record for each line that is not empty: ``{"text": …}``, of JSON lines with their other fields.

    Args:
        path: ``.txt`` or ``.jsonl``, in UTF-8.
        text_key: field of a JSON line that holds the text.

    Raises:
        DataError: missing, not UTF-8, a line that is too long, no JSON object, or without that field.
    """
    check_regular(path, DataError, "data file")
    structured = path.suffix.lower() == ".jsonl"
    number = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(LINE_BYTES):
                number += 1
                if len(line) == LINE_BYTES:
                    raise DataError(
                        f"{path.name}: line {number} is longer than {LINE_BYTES} bytes",
                        "break it into lines",
                    )
                if line.strip():
                    text = line.decode("utf-8")
                    yield _parse(text, text_key, path, number) if structured else {"text": text}
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror}", "check it") from None
    except UnicodeDecodeError:
        raise DataError(
            f"{path.name}: line {number} is not UTF-8 text", "convert it to UTF-8"
        ) from None


def _parse(line: str, text_key: str, path: Path, number: int) -> dict[str, Any]:
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise DataError(
            f"{path.name}: line {number} is not JSON: {error}", "write one object a line"
        ) from None
    if not isinstance(record, dict):
        raise DataError(
            f"{path.name}: line {number} is not a JSON object", 'write {"text": "…"} lines'
        )
    if not isinstance(record.get(text_key), str):
        raise DataError(
            f"{path.name}: line {number} has no text under {text_key!r}.{did_you_mean(text_key, record)}",
            f"it has {some(record)}; name the field by --text-key",
        )
    return {**record, "text": record[text_key]}
