"""Two JSON answers held against each other, number by number."""

from collections.abc import Iterator
from typing import Any


def differences(
    old: Any,
    new: Any,
    path: str,
    scale: float,
    relative: float,
    absolute: float,
    zero: float = 0.0,
) -> Iterator[str]:
    """What differs between two answers.

    Args:
        old: an answer, or a part of it.
        new: the other one.
        path: where the part stands.
        scale: the largest number beside it.
        relative: difference allowed, relative to a number itself,
        absolute: and relative to the largest number beside it.
        zero: numbers up to this are the same.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        beside = max([abs(v) for v in old.values() if _is_number(v)], default=0.0)
        for key in sorted(old.keys() | new.keys()):
            if key not in old or key not in new:
                yield f"{path}.{key}: only in the {'new' if key in new else 'recorded'} answer"
            else:
                yield from differences(
                    old[key], new[key], f"{path}.{key}", beside, relative, absolute, zero
                )
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        beside = max([abs(v) for v in old if _is_number(v)], default=scale)
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{path}[{index}]", beside, relative, absolute, zero)
    elif _is_number(old) and _is_number(new):
        if abs(old - new) > relative * max(abs(old), abs(new)) + absolute * scale + zero:
            yield f"{path}: {old!r} became {new!r}"
    elif isinstance(old, str) and isinstance(new, str):
        # Messages hold figures of their own, which are compared where they stand as numbers.
        if _words(old) != _words(new):
            yield f"{path}: {old!r} became {new!r}"
    elif old != new:
        yield f"{path}: {str(old)[:200]} became {str(new)[:200]}"


def _words(text: str) -> str:
    return "".join(c for c in text if not c.isdigit())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
