"""What a setting takes, in a user's words: msgspec names Python's types."""

import re

_KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text",
    "array": "a list", "object": "a table", "null": "nothing",
}  # fmt: skip
_BOUNDS = {">=": "of at least", ">": "above", "<=": "of at most", "<": "below"}


def expected(problem: str) -> str:
    """The end of a sentence that begins with what was set: ``takes a whole number``.

    Args:
        problem: the message of a `msgspec.ValidationError`.
    """
    kinds = re.match(r"Expected `([^`]+)`( [<>]=? [-\d.e+]+)?", problem)
    if kinds is None:
        return f"cannot be used: {problem[:1].lower()}{problem[1:]}"
    names = [_KINDS.get(kind.strip(), kind.strip()) for kind in kinds[1].split("|")]
    told = " or ".join(name for name in names if name != "nothing")
    if kinds[2]:
        sign, bound = kinds[2].split()
        told += f" {_BOUNDS[sign]} {float(bound):g}"
    return f"takes {told}"
