"""What is left to fill in, in one sentence."""

from curvcli.analyses.init.result import NOT_EVALUATED, InitResult
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.report.data import Headline, Level
from curvcli.report.numbers import number


def headline(answer: Answer[InitResult]) -> Headline:
    """What was written, whether it looks trained, and the next command."""
    result = answer.result
    if result.unknown:
        text = f"{result.path} is written; fill in {', '.join(result.unknown)}, then: curvcli gradients {result.path}"
        return judged(answer, text, "attention")
    sane = result.sanity
    failed = next((note for note in answer.notes if note.startswith(NOT_EVALUATED)), None)
    if failed is not None:
        text = (
            f"{result.path} is written, but {failed.rstrip('.')}. Mend that (a flag such as --target-key y is the line "
            f'target-key = "y" of the file), then: curvcli gradients {result.path}'
        )
        return judged(answer, text, "attention")
    looks = ""
    if sane is not None and sane.loss is not None:
        known = f"loss {number(sane.loss)}" + (
            "" if sane.accuracy is None else f", accuracy {sane.accuracy:.1%}"
        )
        looks = f", and looks {'untrained or dead' if sane.at_chance else 'trained'} ({known})"
    suspicions = sane.suspicions(result.settings.get("loss")) if sane is not None else []
    if suspicions:
        looks += f", but {suspicions[0]}"
    level: Level = "attention" if suspicions or (sane is not None and sane.at_chance) else "good"
    return judged(
        answer,
        f"{result.path} is written{looks}. Go on with: curvcli gradients {result.path}",
        level,
    )
