"""How `curvcli init` is shown."""

from curvcli.analyses.init.result import InitResult
from curvcli.report.data import Block, Cell, Facts
from curvcli.report.numbers import number

# Classes whose samples are counted in the table.
_CLASSES = 12


def view(result: InitResult) -> list[Block]:
    """What was found, and what is missing."""
    rest = ", ".join(result.unknown)
    named = None if result.recognised else result.settings.get("model")
    return [
        Facts(
            [
                ("written", result.path),
                ("format", result.format),
                *([("recognised", result.recognised or "no")] if named is None else []),
                *((key, value) for key, value in result.settings.items()),
                *_training(result),
                ("to fill in", rest or "nothing"),
            ]
        ),
        *_sanity(result),
    ]


def _training(result: InitResult) -> list[tuple[str, Cell]]:
    """What the checkpoint says of its training."""
    known = result.training
    if known is None:
        return []
    rows: list[tuple[str, Cell]] = [
        ("step", known.step),
        ("epoch", known.epoch),
        ("optimizer", known.optimizer),
        ("learning rate", known.learning_rate),
        ("momentum", known.momentum),
        ("betas", ", ".join(map(str, known.betas)) if known.betas else None),
        ("weight decay", known.weight_decay),
    ]
    return [row for row in rows if row[1] is not None]


def _sanity(result: InitResult) -> list[Block]:
    """Figures of the forward pass."""
    sane = result.sanity
    if sane is None:
        return []
    rows: list[tuple[str, Cell]] = [
        ("loss", sane.loss),
        ("loss of the best constant", sane.chance),
        ("loss of equal probabilities, ln C", sane.uniform),
        ("accuracy", None if sane.accuracy is None else f"{sane.accuracy:.1%}"),
        ("samples by class", ", ".join(map(str, sane.class_counts[:_CLASSES]))),
    ]
    rows += [
        (
            channel.name,
            f"mean {number(channel.mean or 0.0, 3)}, RMS {number(channel.rms or 0.0, 3)}",
        )
        for channel in sane.inputs
    ]
    return [Facts([row for row in rows if row[1]], "One forward pass")]
