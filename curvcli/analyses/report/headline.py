"""What a report says in one sentence."""

from curvcli.analyses.report.result import Part, ReportResult
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import PART
from curvcli.report.data import Headline, Level

_ORDER: dict[Level, int] = {"bad": 0, "attention": 1, "good": 2}


def headline(answer: Answer[ReportResult]) -> Headline:
    """How many answers are good, the first of the worst, and which are parts only."""
    result = answer.result
    parts = [*([result.overall] if result.overall else []), *result.parts]
    told = [(part, part.verdict) for part in parts if part.verdict is not None]
    if not told:
        return Headline("attention", f"Nothing is known yet. {PART}")
    good = sum(verdict.level == "good" for _, verdict in told)
    _, worst = min(told, key=lambda found: _ORDER[found[1].level])
    level = worst.level if answer.complete or worst.level == "bad" else "attention"
    if good == len(told):
        sentence = f"All {good} answers are good." if good > 1 else worst.sentence
    else:
        count = f"{good} of {len(told)} answers {'is' if good == 1 else 'are'} good"
        sentence = f"{count}. {_rest(told)}"
    if not answer.complete and PART not in sentence:
        sentence = f"{sentence} {PART}"
    return Headline(level, sentence)


def _rest(told: list[tuple[Part, Headline]]) -> str:
    """The worst answer in full, unless all that is wrong with it is that it ended early: of those the names."""
    ended = [p.analysis for p, v in told if not p.complete and v.level == "attention"]
    whole = [(p, v) for p, v in told if v.level == "bad" or (p.complete and v.level == "attention")]
    sentences = []
    if whole:
        part, worst = min(whole, key=lambda found: _ORDER[found[1].level])
        sentences.append(f"Look first at {part.analysis}: {worst.sentence}")
    if ended:
        names = ", ".join(dict.fromkeys(ended))
        sentences.append(f"Ended early, with what was known by then: {names}.")
    return " ".join(sentences)
