"""Weight normalisation under its two names: the hook of old, and the parametrization that took its place."""

import re
from collections.abc import Collection

# w = g v / ‖v‖, with the same norms in both: original0 is g, original1 is v.
_OLD = re.compile(r"^(?P<module>(?:.*\.)?)(?P<tensor>[^.]+)_(?P<part>[gv])$")
_NEW = re.compile(
    r"^(?P<module>(?:.*\.)?)parametrizations\.(?P<tensor>[^.]+)\.original(?P<part>[01])$"
)
_PARTS = {"g": "0", "v": "1", "0": "g", "1": "v"}


def weight_norm_names(stored: Collection[str], expected: Collection[str]) -> dict[str, str]:
    """Stored names of g and v -> their names in the way that the model has them; empty: nothing is to be renamed.

    Args:
        stored: names in the checkpoint.
        expected: names in the model.

    >>> weight_norm_names(["w_g", "w_v"], ["parametrizations.w.original0", "parametrizations.w.original1"])
    {'w_g': 'parametrizations.w.original0', 'w_v': 'parametrizations.w.original1'}
    """
    for one, other in ((_OLD, _NEW), (_NEW, _OLD)):
        found = {n: m for n in stored if (m := one.match(n))}
        renamed = {name: _other(match, one is _OLD) for name, match in found.items()}
        both = {n: r for n, r in renamed.items() if _partner(found[n], one is _OLD) in found}
        if both and _has(other, expected) and not _has(one, expected):
            return both
    return {}


def _has(pattern: re.Pattern[str], names: Collection[str]) -> bool:
    """Whether g and v of one tensor are among the names in this form."""
    old = pattern is _OLD
    return any((m := pattern.match(n)) and _partner(m, old) in names for n in names)


def _name(module: str, tensor: str, part: str, old: bool) -> str:
    if old:
        return f"{module}{tensor}_{part}"
    return f"{module}parametrizations.{tensor}.original{part}"


def _other(match: re.Match[str], old: bool) -> str:
    """The same tensor in the other form."""
    return _name(match["module"], match["tensor"], _PARTS[match["part"]], not old)


def _partner(match: re.Match[str], old: bool) -> str:
    """v of g, and g of v, in the same form."""
    part = {"g": "v", "v": "g", "0": "1", "1": "0"}[match["part"]]
    return _name(match["module"], match["tensor"], part, old)
