"""`curvcli compare`: what changed between two checkpoints of one model, beyond the error of the figures."""

import math
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from curvcli.analyses.compare.result import (
    Barrier,
    CompareResult,
    Eigenspaces,
    FigureComparison,
    LinePoint,
    MovedLayer,
)
from curvcli.analyses.compare.view import view
from curvcli.analyses.shared.analysis import Analysis
from curvcli.analyses.shared.context import Context, Stage, parse_seconds
from curvcli.analyses.shared.figures import Figure, Precision, all_paths, figures, leaf
from curvcli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from curvcli.analyses.hessian.result import HessianResult

_DEFAULT = ("hessian", "gradients")


def compare(
    context: Context,
    *,
    analysis: Annotated[
        list[str], "Analysis whose figures are compared; repeatable.  [default: hessian, gradients]"
    ] = [],  # noqa: B006
    subspace: Annotated[
        int, Meta(ge=0, description="Dimension of the leading eigenspaces compared; 0: none.")
    ] = 5,
    points: Annotated[
        int, Meta(ge=3, description="Losses looked at on the line between the checkpoints.")
    ] = 21,
    confidence: Annotated[
        float, Meta(gt=0, lt=1, description="Of the intervals of numbers with a standard error.")
    ] = 0.999,
    timeout: Annotated[str | None, "End after so long, e.g. 90s or 5m, with what is known."] = None,
) -> CompareResult:
    """What changed between two checkpoints, beyond the error of each figure.

    Runs the same analyses on both, on the same data, and says of each figure whether the difference is beyond
    both intervals; compares the leading eigenspaces by principal angles; walks the straight line between the
    checkpoints and measures the barrier; and names the layers that moved.

    Args:
        context: its two members are A and B.

    Raises:
        CurvError: wrong input; the checkpoints are of different models.
    """
    from curvcli.analyses.compare.between import check_alike, moved

    a, b = context.members
    names = list(analysis) or list(_DEFAULT)
    _check(names)
    if subspace and "hessian" not in names:
        context.notes.append("no eigenspaces are compared: the hessian is not among the analyses")
    context.limit_time(parse_seconds(timeout))
    context.progress(Stage("loading", 0, None))
    b.target.share_data(a.target)
    if a.spec.data != b.spec.data:
        context.notes.append(
            "the checkpoints have different data: figures differ by that too; the line uses that of A"
        )
    for member in (a, b):
        _ = member.objective
    check_alike(a.objective.model, b.objective.model)
    results = [_results(context, member, names, subspace) for member in (a, b)]
    compared = [
        row for name in names if all(name in r for r in results)
        for row in _figures(name, results[0][name], results[1][name], (a, b), confidence)
    ]  # fmt: skip
    for member, letter in ((a, "A"), (b, "B")):
        context.notes.extend(f"{letter}: {note}" for note in dict.fromkeys(member.notes))
    spaces = None
    if subspace and "hessian" in names and all("hessian" in r for r in results):
        spaces = _eigenspaces(context, results[0]["hessian"], results[1]["hessian"], subspace)
    moves = moved(a.objective.model, b.objective.model)
    total = sum(m.distance**2 for m in moves)
    return CompareResult(
        a=a.target_info(),
        b=b.target_info(),
        figures=compared,
        eigenspaces=spaces,
        line=_line(context, points),
        layers=[
            MovedLayer(
                name=m.name,
                distance=m.distance,
                relative=m.distance / m.before if m.before else None,
                cosine=m.cosine,
                share=m.distance**2 / total if total else 0.0,
            )
            for m in moves
        ],
        distance=math.sqrt(total),
        confidence=confidence,
    )


def _check(names: list[str]) -> None:
    from curvcli.analyses.registry import NAMES, get

    known = [n for n in NAMES if get(n).targets == "one" and get(n).needs != "nothing"]
    for name in names:
        if name not in known:
            raise UsageError(
                f"--analysis: there is no analysis {name!r}.{did_you_mean(name, known)}",
                f"known: {', '.join(known)}",
            )


def _results(context: Context, member: Context, names: list[str], subspace: int) -> dict[str, Any]:
    """The results of one checkpoint by analysis."""
    from curvcli.analyses.registry import get

    found: dict[str, Any] = {}
    for name in names:
        if context.stop() is not None:
            context.incomplete = True
            context.notes.append(f"ended before {name} of {member.name}")
            break
        context.progress(Stage(f"{member.name}: {name}", 0, None))
        chosen = get(name)
        options = chosen.validate(member.tables.get(name, {}), f"[{name}] in the target file")
        if name == "hessian" and subspace:
            # One more than the space holds, so that the gap below it is known.
            options["top"] = max(int(options.get("top", 10)), subspace + 1)
        found[name] = chosen.run(member, **options)
        context.incomplete = context.incomplete or member.incomplete
    for finding in member.findings:
        context.find(
            finding.rule, finding.severity, f"{member.name}: {finding.subject}",
            f"{member.name}: {finding.message}", value=finding.value, threshold=finding.threshold,
        )  # fmt: skip
    return found


def _figures(
    name: str, a: Any, b: Any, members: tuple[Context, Context], confidence: float
) -> list[FigureComparison]:
    """All figures that both results have."""
    from curvcli.analyses.registry import get

    precisions = [
        Precision(confidence, str(m.objective.dtype).removeprefix("torch.")) for m in members
    ]
    rows = []
    for steps in all_paths(a):
        try:
            found = leaf(get(name).result, steps, name)
            pair = [
                figures(result, found, name, precision)[0]
                for result, precision in zip((a, b), precisions, strict=True)
            ]
        except (UsageError, LookupError, IndexError):
            continue  # B has no such entry: fewer layers, samples or points
        rows.append(_compared(*pair))
    return rows


def _compared(a: Figure, b: Figure) -> FigureComparison:
    numbers = [f.value for f in (a, b) if isinstance(f.value, int | float) and f.value is not True]
    difference = ratio = None
    beyond: bool | None = None
    if len(numbers) == 2 and not isinstance(a.value, bool):
        difference = float(numbers[1] - numbers[0])
        ratio = float(numbers[1] / numbers[0]) if numbers[0] else None
        beyond = a.bounds[1] < b.bounds[0] or b.bounds[1] < a.bounds[0]
    elif a.value is not None and b.value is not None:
        beyond = a.value != b.value
    return FigureComparison(
        path=a.path, a=a, b=b, difference=difference, ratio=ratio, beyond=beyond
    )


def _eigenspaces(
    context: Context, a: "HessianResult", b: "HessianResult", wanted: int
) -> Eigenspaces | None:
    from curvcli.analyses.compare.between import principal_cosines

    first, second = (m.vectors_KN for m in context.members)
    if first is None or second is None or first.shape[1] != second.shape[1]:
        context.notes.append("no eigenspaces are compared: the vectors are of different spaces")
        return None
    size = min(wanted, len(a.top) - 1, len(b.top) - 1)
    if size < 1:
        return None
    cosines = principal_cosines(first[:size], second[:size])
    # sin θ of the largest angle between a computed and the true space is ≤ ‖residuals‖ / gap (Davis & Kahan 1970),
    # and tr(P_A P_B) / k moves by at most ‖P − P̂‖_* / k ≤ 2 sin θ for each of the two projectors.
    errors, gaps = [], []
    for result in (a, b):
        gaps.append(result.top[size - 1].value - result.top[size].value)
        room = gaps[-1] - result.top[size].residual
        residual = math.sqrt(sum(p.residual**2 for p in result.top[:size]))
        errors.append(residual / room if room > residual else math.inf)
    error = 2 * sum(errors)
    return Eigenspaces(
        dimension=size,
        cosines=cosines,
        overlap=sum(c**2 for c in cosines) / size,
        overlap_error=min(1.0, error) if math.isfinite(error) else None,
        expected_at_random=size / first.shape[1],
        gaps=gaps,
    )


def _line(context: Context, points: int) -> Barrier:
    from curvcli.analyses.compare.between import Between

    a, b = context.members
    line = Between(a.objective, b.objective.model)
    context.progress(Stage("line", 0, points))
    position = line.highest(points)
    height, error = line.excess(position), line.resolution()
    shown = sorted(line.known)
    finite = [x for x in shown if math.isfinite(line(x))]
    return Barrier(
        points=[LinePoint(x, line(x) if math.isfinite(line(x)) else None) for x in shown],
        height=max(0.0, height) if math.isfinite(height) else None,
        position=position,
        error=error,
        lowest=min(finite, key=line, default=0.0),
        connected=math.isfinite(height) and height <= error,
    )


ANALYSIS = Analysis(compare, view, targets="pair")
