"""How `curvcli init` is shown."""

from curvcli.analyses.init.result import InitResult
from curvcli.report.data import Block, Facts, Sentence


def view(result: InitResult) -> list[Block]:
    """What was found, what is missing, and the next command."""
    rest = ", ".join(result.unknown)
    return [
        Facts(
            [
                ("written", result.path),
                ("format", result.format),
                ("recognised", result.recognised or "no"),
                *((key, value) for key, value in result.settings.items()),
                ("to fill in", rest or "nothing"),
            ]
        ),
        Sentence(
            f"Fill in {rest} in {result.path}, then: curvcli hessian {result.path}"
            if rest
            else f"Go on with: curvcli hessian {result.path}"
        ),
    ]
