"""An answer that is there, as series for trackers."""

from typing import Any

from msgspec.structs import replace

from curvcli.analyses.shared.targets import step_of
from curvcli.training.series import series_of

LOGGED = ("track", "check", "report")
"""Questions whose answers go to trackers."""


def series_in(question: str, result: Any) -> list[tuple[int, dict[str, float]]]:
    """(step, figures): the points of `track`, what the rules of `check` looked at, or all of a `report`, by target.

    A step that is not known is the place in the series.
    """
    if question == "report":
        return _of_report(result)
    if question == "track":
        return [
            (place if point.step is None else point.step, _of_point(point))
            for place, point in enumerate(result.points)
        ]
    found = []
    for place, target in enumerate(result.targets):
        step = step_of(target.name)
        figures = {
            rule.figure.path: float(rule.figure.value)
            for rule in target.rules
            if rule.figure is not None and type(rule.figure.value) in (int, float)
        }
        violated = sum(rule.decision == "violation" for rule in target.rules)
        found.append((place if step is None else step, {**figures, "check.violated": float(violated)}))  # fmt: skip
    return found


def _of_point(point: Any) -> dict[str, float]:
    own = series_of("track", replace(point, figures=[]))
    return own | {f.path: float(f.value) for f in point.figures if type(f.value) in (int, float)}


def _of_report(result: Any) -> list[tuple[int, dict[str, float]]]:
    """The course of a training run, then the figures of each checkpoint that was looked at more closely."""
    overall, found = result.overall, []
    if overall is not None and overall.analysis == "track":
        found = series_in("track", overall.result)
    for place, target in enumerate(dict.fromkeys(part.target for part in result.parts)):
        step, figures = step_of(target), dict[str, float]()
        for part in result.parts:
            if part.target == target:
                figures |= series_of(part.analysis, part.result)
        found.append((place if step is None else step, figures))
    return found
