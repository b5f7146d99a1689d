"""The first line of an answer: how well the network does on the data."""

from collections.abc import Sequence
from pathlib import Path

from curvcli.report.data import Block, Sentence, TargetInfo
from curvcli.report.numbers import number


def headed(target: TargetInfo | None, blocks: Sequence[Block]) -> list[Block]:
    """The blocks of an answer behind that line, where it is known, and behind the warning that a network is a guess."""
    if target is None:
        return list(blocks)
    head = []
    if target.guess is not None:
        head.append(
            Sentence(
                f"The network is a guess (--model auto): {target.guess}. If it is not yours, no figure here is: "
                "name yours by --model file.py:Class.",
                "bad",
            )
        )
    line = fit_line(target)
    if line is not None and target.fit is not None:
        head.append(Sentence(line, "bad" if target.fit.at_chance else "plain"))
    return [*head, *blocks]


def called(target: TargetInfo) -> str:
    """The last two parts of its path, by which checkpoints of different runs are told apart."""
    return "/".join(Path(target.checkpoint or target.model or "the target").parts[-2:])


def fit_line(target: TargetInfo | None) -> str | None:
    """Loss and accuracy beside those of the best constant predictor; None where nothing is known."""
    fit = target.fit if target is not None else None
    if target is None or fit is None or fit.loss is None:
        return None
    known = [(fit.loss, fit.accuracy), (fit.chance, fit.majority)]
    own, constant = (
        ", ".join(
            [
                *([] if loss is None else [f"loss {number(loss)}"]),
                *([] if accuracy is None else [f"accuracy {accuracy:.1%}"]),
            ]
        )
        for loss, accuracy in known
    )
    line = own[0].upper() + own[1:]
    if constant:
        line += (
            f" on {target.samples:,} samples; an output that never changes has at best {constant}"
        )
    if fit.at_chance:
        return f"{line}. No better than a constant: {fit.why}."
    return f"{line}."
