"""What a report says in one sentence."""

from curvcli.analyses.report.result import Part, ReportResult
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import PART
from curvcli.report.data import Headline, Level

_ORDER: dict[Level, int] = {"bad": 0, "attention": 1, "good": 2}


def headline(answer: Answer[ReportResult]) -> Headline:
    """How many answers are good, and the first of the worst."""
    result = answer.result
    parts = [*([result.overall] if result.overall else []), *result.parts]
    told = [(part, part.verdict) for part in parts if part.verdict is not None]
    if not told:
        return Headline("attention", f"Nothing is known yet. {PART}")
    good = sum(verdict.level == "good" for _, verdict in told)
    part, worst = min(told, key=lambda found: _ORDER[found[1].level])
    level = worst.level if answer.complete or worst.level == "bad" else "attention"
    if good == len(told):
        sentence = f"All {good} answers are good." if good > 1 else worst.sentence
    else:
        count = f"{good} of {len(told)} answers {'is' if good == 1 else 'are'} good"
        sentence = f"{count}. Look first at {_named(part)}: {worst.sentence}"
    if not answer.complete and PART not in sentence:
        sentence = f"{sentence} {PART}"
    return Headline(level, sentence)


def _named(part: Part) -> str:
    return part.analysis
