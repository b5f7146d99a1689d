"""Names in little room: cut so that what differs among them stays visible."""

from collections.abc import Callable, Sequence

from curvcli.errors import printable


def shortened(
    names: Sequence[str], width: int, measure: Callable[[str], int] = len
) -> dict[str, str]:
    """Each name in at most ``width`` characters: cut in its middle, ``layers…linear10``, or ``l.0.linear10``.

    No two names become one: where ``width`` is too small for that, all may be longer.

    Args:
        names: of the same list.
        width: characters.
        measure: how many of them a text takes.
    """
    distinct = list(dict.fromkeys(names))
    longest = max(map(measure, distinct), default=0)
    for limit in range(max(3, width), longest):
        for cut in (_at_dots, _in_the_middle, _keeping_the_end, _initials):
            short = [n if measure(n) <= limit else cut(n, limit, measure) for n in distinct]
            if len(set(short)) == len(distinct) and max(map(measure, short)) <= limit:
                return dict(zip(distinct, short, strict=True))
    return {name: name for name in distinct}


def cut_names(names: Sequence[str], width: int) -> list[str]:
    """What files and pictures show of names that may come from a file."""
    told = [printable(name) for name in names]
    short = shortened(told, width)
    return [short[name] for name in told]


def _at_dots(name: str, limit: int, measure: Callable[[str], int]) -> str:
    """The first part and as many of the last ones as there is room for, where these use most of it."""
    parts = name.split(".")
    for first in range(1, len(parts) - 1):
        tail = ".".join(parts[first + 1 :])
        if limit * 2 // 3 <= measure(parts[0]) + 1 + measure(tail) <= limit:
            return f"{parts[0]}…{tail}"
    return (_keeping_the_end if len(parts) > 1 else _in_the_middle)(name, limit, measure)


def _in_the_middle(name: str, limit: int, measure: Callable[[str], int]) -> str:
    return _cut(name, (limit - 1) // 2, limit, measure)


def _keeping_the_end(name: str, limit: int, measure: Callable[[str], int]) -> str:
    return _cut(name, (limit - 1) // 4, limit, measure)


def _initials(name: str, limit: int, measure: Callable[[str], int]) -> str:
    """Words before the last one by their first letters, from the left, as many as must be; numbers stay."""
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if measure(".".join(parts)) <= limit:
            break
        if part and not part.isdigit():
            parts[i] = part[0]
    return ".".join(parts)


def _cut(name: str, head: int, limit: int, measure: Callable[[str], int]) -> str:
    """``head`` characters, and the last ones that there is room for."""
    front, back = "", ""
    for character in name:
        if measure(front + character) > head:
            break
        front += character
    for character in reversed(name):
        if measure(front) + 1 + measure(character + back) > limit:
            break
        back = character + back
    return f"{front}…{back}"
