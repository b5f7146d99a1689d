"""`curvcli compare`: what changed between two checkpoints of one model, beyond the error of the figures."""

import math
from typing import Any

from msgspec.structs import replace
from torch import Tensor

from curvcli.analyses.compare.between import Between, check_alike, moved, principal_cosines
from curvcli.analyses.compare.classes import by_class
from curvcli.analyses.compare.command import CompareOptions
from curvcli.analyses.compare.paired import identical, paired, sharpness_differs
from curvcli.analyses.compare.result import (
    Barrier,
    CompareResult,
    Eigenspaces,
    FigureComparison,
    LinePoint,
    MovedLayer,
    Paired,
)
from curvcli.analyses.compare.sampling import sampling
from curvcli.analyses.registry import NAMES, get
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.figures import Figure, Precision, figures
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.paths import all_paths, leaf
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import UsageError, did_you_mean
from curvcli.loading.spec import TargetSpec
from curvcli.objective.movement import held_weights
from curvcli.objective.objective import Objective

_DEFAULT = ("hessian", "gradients")


def run(subject: Subject, options: CompareOptions, journal: Journal) -> Answer[CompareResult]:
    """Answer `curvcli compare`; see `CompareOptions`.

    Raises:
        CurvError: wrong input; the checkpoints are of different models.
    """
    a, b = _pair(subject, options)
    subject.members = (a, b)
    subject.end_reading_when(journal.stop_reading)
    names = list(options.analysis) or [n for n in _DEFAULT if _can_ask(n, a)]
    _check(names)
    if options.subspace and "hessian" not in names:
        journal.note("no eigenspaces are compared: the hessian is not among the analyses")
    journal.progress(Stage("loading", 0, None))
    b.target.share_data(a.target)
    if a.spec.data != b.spec.data:
        journal.note(
            "the checkpoints have different data: figures differ by that too; the line uses that of A"
        )
    for member in (a, b):
        _ = member.objective
    check_alike(a.objective, b.objective)
    answers = [_answers(journal, member, names, options.subspace) for member in (a, b)]
    both = [name for name in names if all(name in known for known in answers)]
    compared = [
        row for name in both
        for row in _figures(name, answers[0][name].result, answers[1][name].result, (a, b), options.confidence)
    ]  # fmt: skip
    for known, letter in zip(answers, "AB", strict=True):
        said = dict.fromkeys(note for answer in known.values() for note in answer.notes)
        journal.notes.extend(f"{letter}: {note}" for note in said)
    spaces = None
    if options.subspace and "hessian" in both:
        spaces = _eigenspaces(
            journal, a.objective, answers[0]["hessian"], answers[1]["hessian"], options.subspace
        )
    other = a.target.data_sha256 != b.target.data_sha256
    tops = None
    if "hessian" in both and all(known["hessian"].result.top for known in answers):
        tops = (answers[0]["hessian"].result.top[0], answers[1]["hessian"].result.top[0])
    pair = None if other else paired(a.objective, b.objective)
    if pair is not None:
        vectors = [k["hessian"].vectors_KN if "hessian" in k else None for k in answers]
        compared = _on_data(compared, pair, a, b, vectors)
    weights = [held_weights(m.objective) for m in (a, b)]
    moves = moved(weights[0], weights[1], a.objective.ranks)
    total = sum(m.distance**2 for m in moves)
    return journal.answer(
        CompareResult(
            names=(a.name, b.name),
            a=a.info(),
            b=b.info(),
            figures=compared,
            identical=identical(a.objective, b.objective),
            paired=pair,
            sampling=sampling(a.objective, b.objective, tops) if other else None,
            classes=by_class(a, b, journal) if options.per_class else [],
            eigenspaces=spaces,
            line=_line(a, b, journal, options.points),
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
            confidence=options.confidence,
        )
    )


def _pair(subject: Subject, options: CompareOptions) -> tuple[Subject, Subject]:
    """A and B; a single target beside itself with other weights, or on other data.

    Raises:
        UsageError: there is one target, and nothing that is other.
    """
    members = list(subject.members) or [subject]
    a, b = members[0], members[-1]
    if len(members) == 1 and options.other_data is None:
        if a.spec.weights is None:
            raise UsageError(
                "two targets are compared, not 1",
                "name two checkpoints (a target file before them gives their settings), or compare one with itself: "
                "--weights KEY for other weights in the same file, --other-data for other data",
            )
        usual = replace(a.spec, weights=None)
        return _beside(a, usual, a.name), _beside(b, b.spec, f"{b.name} ({a.spec.weights})")
    if options.other_data is not None:
        there = replace(b.spec, data=options.other_data)
        b = _beside(b, there, f"{b.name} on {options.other_data}")
    return a, b


def _beside(member: Subject, spec: TargetSpec, name: str) -> Subject:
    """The target with other settings, in the same run."""
    other = member.again(spec)
    other.tables, other.name = member.tables, name
    return other


def _can_ask(name: str, member: Subject) -> bool:
    return not member.spec.shard or get(name).can_divide


def _check(names: list[str]) -> None:

    known = [n for n in NAMES if get(n).targets == "one" and get(n).needs != "nothing"]
    for name in names:
        if name not in known:
            raise UsageError(
                f"--analysis: there is no analysis {name!r}.{did_you_mean(name, known)}",
                f"known: {', '.join(known)}",
            )


def _answers(
    journal: Journal, member: Subject, names: list[str], subspace: int
) -> dict[str, Answer[Any]]:
    """What each question says of one checkpoint."""
    found: dict[str, Answer[Any]] = {}
    for name in names:
        if journal.stop() is not None:
            journal.cut_short(f"ended before {name} of {member.name}")
            break
        values = dict(member.tables.get(name, {}))
        if name == "hessian" and subspace:
            # One more than the space holds, so that the gap below it is known.
            values["top"] = max(int(values.get("top", 10)), subspace + 1)
        part = journal.part(f"{member.name}: {name}: ")
        answer = get(name).ask(member, values, part, f"[{name}] in the target file")
        if not answer.complete:
            journal.cut_short()
        journal.adopt(answer.findings, member.name)
        found[name] = answer
    return found


def _figures(
    name: str, a: Any, b: Any, members: tuple[Subject, Subject], confidence: float
) -> list[FigureComparison]:
    """All figures that both results have."""
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


def _on_data(
    rows: list[FigureComparison], pair: Paired, a: Subject, b: Subject, vectors: list[Tensor | None]
) -> list[FigureComparison]:
    """Loss and largest eigenvalue judged by their differences on the same samples, where there are enough."""
    first, second = vectors
    sharper = None
    if first is not None and second is not None and len(first) and len(second):
        sharper = sharpness_differs(a.objective, b.objective, (first[0], second[0]))
    judged = {"hessian.top[0].value": sharper}
    if pair.standard_error is not None:
        differs = pair.better is not None
        judged |= dict.fromkeys(
            ("hessian.loss", "gradients.loss", "gradients.sanity.loss"), differs
        )
    return [
        replace(row, beyond=bool(row.beyond and found), by="data")
        if row.beyond is not None and (found := judged.get(row.path)) is not None
        else row
        for row in rows
    ]


def _eigenspaces(
    journal: Journal, objective: Objective, a: Answer[Any], b: Answer[Any], wanted: int
) -> Eigenspaces | None:
    """How the spaces of the leading eigenvectors of two `hessian` answers lie to each other."""
    first, second = a.vectors_KN, b.vectors_KN
    if first is None or second is None or first.shape[1] != second.shape[1]:
        journal.note("no eigenspaces are compared: the vectors are of different spaces")
        return None
    size = min(wanted, len(a.result.top) - 1, len(b.result.top) - 1)
    if size < 1:
        return None
    cosines = principal_cosines(first[:size], second[:size], objective.ranks)
    # sin θ of the largest angle between a computed and the true space is ≤ ‖residuals‖ / gap (Davis & Kahan 1970),
    # and tr(P_A P_B) / k moves by at most ‖P − P̂‖_* / k ≤ 2 sin θ for each of the two projectors.
    errors, gaps = [], []
    for result in (a.result, b.result):
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
        expected_at_random=size / objective.n,
        gaps=gaps,
    )


def _line(a: Subject, b: Subject, journal: Journal, points: int) -> Barrier:
    """The loss on the straight line between the checkpoints."""
    line = Between(a.objective, b.objective.model)
    journal.progress(Stage("line", 0, points))
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
