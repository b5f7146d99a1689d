"""The analyses that rules need, once for each target, from the cache where nothing has changed."""

import time
import warnings
from dataclasses import dataclass, field
from typing import Any

from curvcli.analyses.check.cache import NotKept, TargetKey, lookup, store
from curvcli.analyses.check.result import AnalysisRun
from curvcli.analyses.registry import get
from curvcli.analyses.shared.answer import Answer, envelope, error_info, internal
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.question import Question
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.shared.trouble import explained
from curvcli.report.data import Envelope, ErrorInfo

_WHERE = "[{}] in the target file"


@dataclass
class Answers:
    """What the analyses of one target said."""

    envelopes: dict[str, Envelope[Any]] = field(default_factory=dict)
    runs: list[AnalysisRun] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Budget:
    """Seconds that are shared out over the rules still to be decided."""

    def __init__(self, seconds: float | None, rules: int) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._left = rules

    def share(self, rules: int) -> float | None:
        """Seconds for an analysis that ``rules`` of the remaining rules need."""
        if self._end is None:
            return None
        left = max(0.0, self._end - time.monotonic())
        return left * min(1.0, rules / max(1, self._left))

    def done(self, rules: int) -> None:
        """These rules have what they need."""
        self._left -= rules


def run_analyses(
    member: Subject, needed: dict[str, int], budget: Budget, use_cache: bool, journal: Journal
) -> Answers:
    """Run each analysis once.

    Args:
        member: the target.
        needed: analyses, and how many rules need each.
        budget: time to spend.
        use_cache: whether answers are kept and looked up.
        journal: told of progress and asked for interruption.
    """
    answers = Answers()
    keys = TargetKey(member.spec)
    for name, rules in needed.items():
        journal.progress(Stage(f"{member.name}: {name}", len(answers.runs), len(needed)))
        question = get(name)
        values = member.tables.get(name, {})
        checked = question.validate(values, _WHERE.format(name))
        kept_at_all = use_cache and not member.live  # objects have no file that a key could name
        key = _key(keys, name, checked, answers.notes) if kept_at_all else None
        began = time.monotonic()
        kept = lookup(key, question) if key else None
        # Processes may have caches of their own: what one must compute, all do.
        if not journal.agreed(kept is None) and kept is not None:
            answers.envelopes[name] = kept
            answers.runs.append(
                AnalysisRun(name, round(time.monotonic() - began, 3), True, True, None)
            )
            budget.done(rules)
            continue
        part = journal.part(f"{name}: ", budget.share(rules))
        found = _ask(member, question, part)
        budget.done(rules)
        seconds = round(time.monotonic() - began, 3)
        answers.runs.append(AnalysisRun(name, seconds, False, found.complete, found.error))
        if found.error is None:
            answers.envelopes[name] = found
            # What was hashed must be what was read: a file that changed meanwhile is not kept.
            final = part.stop() is None
            if key and final and _key(TargetKey(member.spec), name, checked, []) == key:
                store(key, found)
    answers.notes = list(dict.fromkeys(answers.notes))
    return answers


def _key(keys: TargetKey, name: str, options: dict[str, Any], notes: list[str]) -> str | None:
    try:
        return keys.key(name, options)
    except NotKept as reason:
        notes.append(f"answers are not kept in the cache: {reason}")
    except OSError:
        pass  # a file that cannot be read is the analysis' to report
    return None


def _ask(member: Subject, question: Question, journal: Journal) -> Envelope[Any]:
    """The answer, or the error."""
    subject = member.again()
    answer: Answer[Any] | None = None
    error: ErrorInfo | None = None
    values = member.tables.get(question.name, {})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = question.ask(subject, values, journal, _WHERE.format(question.name))
    except KeyboardInterrupt:
        raise
    except (Exception, SystemExit) as problem:
        # One question that fails must not hide what the others say.
        known = explained(problem)
        error = error_info(known) if known else internal(problem)
    return envelope(question.name, subject, journal, answer, error)
