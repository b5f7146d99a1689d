"""Which arrays of a file belong together: those of one part of the data, such as ``x_test`` and ``y_test``."""

import re
from collections.abc import Iterable, Sequence

TARGET_NAMES = ("y", "targets", "target", "labels", "label", "Y")
_PARTS = "train|training|test|val|valid|validation|dev|eval"
_IN_FRONT = re.compile(rf"({_PARTS})[-_.](.+)", re.IGNORECASE)
_BEHIND = re.compile(rf"(.+)[-_.]({_PARTS})", re.IGNORECASE)


def part_of(name: str) -> tuple[str, str | None]:
    """What an array is called within its part of the data, and which part that is.

    >>> part_of("X_train"), part_of("test_labels"), part_of("y")
    (('X', 'train'), ('labels', 'test'), ('y', None))
    """
    if behind := _BEHIND.fullmatch(name):
        return behind[1], behind[2].lower()
    if in_front := _IN_FRONT.fullmatch(name):
        return in_front[2], in_front[1].lower()
    return name, None


def pairs(names: Iterable[str]) -> dict[str, list[str]]:
    """The targets of each part of the data that has them, with the inputs of that part.

    >>> pairs(["x_train", "y_train", "x_test", "y_test", "mean"])
    {'y_train': ['x_train'], 'y_test': ['x_test']}
    """
    parts: dict[str, list[str]] = {}
    for name in names:
        if (part := part_of(name)[1]) is not None:
            parts.setdefault(part, []).append(name)
    found = {}
    for held in parts.values():
        targets = [n for n in held if part_of(n)[0] in TARGET_NAMES]
        if len(targets) == 1 and len(held) > 1:
            found[targets[0]] = [n for n in held if n != targets[0]]
    return found


def belonging(
    names: Iterable[str], inputs: Sequence[str], target: str | None
) -> tuple[list[str], str | None]:
    """Inputs and target, completed by what belongs to the same part of the data.

    What is named stays. Without any name the only pair is taken, unless an array has the usual name of targets.

    >>> belonging(["x_train", "y_train", "x_test", "y_test"], [], "y_test")
    (['x_test'], 'y_test')
    """
    listed = list(names)
    known = pairs(listed)
    if target is not None and not inputs:
        return known.get(target, []), target
    if inputs and target is None:
        return [*inputs], next((t for t, held in known.items() if {*inputs} <= {*held}), None)
    if not inputs and len(known) == 1 and not {*TARGET_NAMES} & {*listed}:
        ((target, found),) = known.items()
        return found, target
    return [*inputs], target
