"""The sentence that an answer begins with: what it means, how sure it is, what to do."""

import re
from typing import Any

from curvcli.analyses.shared.answer import Answer
from curvcli.report.data import Finding, Headline, Level

PART = "Only a part was computed: time or products ran out."


def answered(answer: Answer[Any]) -> Headline:
    """For a question that has no sentence of its own: its worst finding."""
    return judged(answer, "Nothing was found.")


def judged(
    answer: Answer[Any], sentence: str, level: Level = "good", *, replaced: bool = False
) -> Headline:
    """``sentence``, unless something in the answer is worse.

    An error takes its place: nothing else counts then. A warning makes ``level`` at least *attention*.

    Args:
        answer: whose findings count.
        sentence: safe ends of intervals only.
        level: of the sentence itself.
        replaced: a warning takes the place of the sentence as well, which says that all is well.
    """
    worst = _worst(answer.findings)
    if worst is not None and worst.severity == "error":
        return Headline("bad", _ended(worst, answer.findings, "error"))
    if worst is not None and worst.severity == "warning":
        level = "attention" if level == "good" else level
        if replaced:
            sentence = _ended(worst, answer.findings, "warning")
    if not answer.complete:
        level = "attention" if level == "good" else level
        sentence = f"{sentence} {PART}"
    return Headline(level, sentence)


def _worst(findings: list[Finding]) -> Finding | None:
    order = {"error": 0, "warning": 1, "note": 2}
    return min(findings, key=lambda f: order[f.severity], default=None)


def _ended(worst: Finding, findings: list[Finding], severity: str) -> str:
    """The first message as a sentence, and how many more there are."""
    more = sum(f.severity == severity for f in findings) - 1
    first = _begun(without_threshold(worst.message).rstrip("."), worst.subject)
    return f"{first}; {more} more below." if more > 0 else f"{first}."


def _begun(message: str, subject: str) -> str:
    """With a capital letter, unless it begins with a name.

    >>> _begun("the output is constant", "output"), _begun("fc1.weight is zero", ""), _begun("head is dead", "head")
    ('The output is constant', 'fc1.weight is zero', 'head is dead')
    """
    word = message.partition(" ")[0]
    return message[:1].upper() + message[1:] if word.isalpha() and word != subject else message


def without_threshold(message: str) -> str:
    """A message without the threshold and its source, which stand in brackets.

    >>> without_threshold("80% are dead [> 0.5: source]; look")
    '80% are dead; look'
    >>> without_threshold("nll needs others [< 1.00: nll is -outputs[target]]")
    'nll needs others'
    """
    return re.sub(r" \[[<>≤≥=](?:[^\[\]]|\[[^\[\]]*\])*\]", "", message)
