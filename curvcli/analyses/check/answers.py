"""The analyses that rules need, once for each target, from the cache where nothing has changed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from curvcli import __version__
from curvcli.analyses.check.cache import NotKept, TargetKey, lookup, store
from curvcli.analyses.check.result import AnalysisRun
from curvcli.analyses.registry import get
from curvcli.analyses.shared.context import Context, Stage
from curvcli.errors import EXIT_INTERNAL, CurvError
from curvcli.report.data import Envelope, ErrorInfo


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
    member: Context, needed: dict[str, int], budget: Budget, use_cache: bool, parent: Context
) -> Answers:
    """Run each analysis once.

    Args:
        member: the target.
        needed: analyses, and how many rules need each.
        budget: time to spend.
        use_cache: whether answers are kept and looked up.
        parent: told of progress and asked for interruption.
    """
    answers = Answers()
    keys = TargetKey(member.spec)
    for name, rules in needed.items():
        parent.progress(Stage(f"{member.name}: {name}", len(answers.runs), len(needed)))
        analysis = get(name)
        options = analysis.validate(member.tables.get(name, {}), f"[{name}] in the target file")
        key = _key(keys, name, options, answers.notes) if use_cache else None
        began = time.monotonic()
        kept = lookup(key, analysis) if key else None
        if kept is not None:
            answers.envelopes[name] = kept
            answers.runs.append(
                AnalysisRun(name, round(time.monotonic() - began, 3), True, True, None)
            )
            budget.done(rules)
            continue
        envelope, complete, final = _run(member, name, options, budget.share(rules), parent)
        budget.done(rules)
        seconds = round(time.monotonic() - began, 3)
        answers.runs.append(AnalysisRun(name, seconds, False, complete, envelope.error))
        if envelope.error is None:
            answers.envelopes[name] = envelope
            # What was hashed must be what was read: a file that changed meanwhile is not kept.
            if key and final and _key(TargetKey(member.spec), name, options, []) == key:
                store(key, envelope)
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


def _run(
    member: Context, name: str, options: dict[str, Any], seconds: float | None, parent: Context
) -> tuple[Envelope[Any], bool, bool]:
    """(the answer, whether it is complete, whether another run would say the same)."""
    import warnings

    context = Context(
        member.spec,
        progress=_prefixed(parent.progress, f"{name}: "),
        interrupted=parent.interrupted,
        name=member.name,
        deadline=seconds,
    )
    result, error = None, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = get(name).run(context, **options)
    except CurvError as problem:
        error = ErrorInfo(problem.code, problem.message, problem.hint, problem.exit_code)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as problem:  # one analysis that fails must not hide what the others say
        error = ErrorInfo("internal", f"{type(problem).__name__}: {problem}", None, EXIT_INTERNAL)
    envelope: Envelope[Any] = Envelope(
        command=name, version=__version__, target=context.target_info(), result=result,
        findings=context.findings, notes=context.notes, cost=context.cost_info(), error=error,
    )  # fmt: skip
    return envelope, not context.incomplete, context.stop() is None


def _prefixed(progress: Callable[[Stage], None], prefix: str) -> Callable[[Stage], None]:
    return lambda stage: progress(stage._replace(what=prefix + stage.what))
