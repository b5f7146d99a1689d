"""Loss and curvature of single classes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from curvcli.analyses.compare.result import ClassComparison
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.subject import Subject
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.hessian import Hessian

# Classes at most, and products for each eigenvalue.
CLASSES = 32
_PRODUCTS, _TOL = 40, 1e-2


def by_class(a: Subject, b: Subject, journal: Journal) -> list[ClassComparison]:
    """One row for each class of the data; empty where targets are no classes."""
    labels = [_labels(m.objective) for m in (a, b)]
    if labels[0] is None or labels[1] is None:
        journal.note("no classes are compared: the targets are no class numbers, one for a sample")
        return []
    known = sorted({int(c) for found in labels for batch in found or [] for c in batch.unique()})
    if len(known) > CLASSES:
        journal.note(f"the first {CLASSES} of {len(known)} classes are compared")
    rows = []
    for index, number in enumerate(known[:CLASSES]):
        if journal.stop() is not None:
            journal.cut_short(f"ended before class {number}")
            break
        journal.progress(Stage("classes", index, len(known)))
        found = [_figures(m, number) for m in (a, b)]
        (n, loss_a, top_a), (_, loss_b, top_b) = found
        rows.append(ClassComparison(number, n, loss_a, loss_b, top_a, top_b))
    return rows


def _labels(objective: Objective) -> list[Tensor] | None:
    """The class numbers of each batch."""
    found: list[Tensor] = []
    for batch in objective.batches:
        target = batch.data[2] if isinstance(batch.data, tuple) and len(batch.data) == 3 else None
        if not isinstance(target, Tensor) or target.is_floating_point() or not batch.splittable:
            return None
        if target.shape != (batch.size,):
            return None
        found.append(target)
    return found


def _figures(member: Subject, number: int) -> tuple[int, float | None, float | None]:
    """(samples, loss, λ_max) of a class."""
    objective = member.objective
    batches = list(_of_class(objective, number))
    if not batches:
        return 0, None, None
    # Those that are left out are no parameters of divided weights.
    divided: dict[str, Any] = {
        "ranks": objective.ranks, "lean": objective.lean, "divided": objective.divided,
    }  # fmt: skip
    part = make_objective(
        objective.model, batches, objective.terms,
        **divided if objective.divided else {"select": member.spec.params},
        train_mode=member.spec.train_mode, plain=member.spec.plain, tf32=member.spec.tf32,
        memory=member.spec.memory_bytes,
    )  # fmt: skip
    operator = Hessian(part, memory=member.spec.memory_bytes, wanted=2)
    found = lanczos(
        operator, Wanted(1, 0), tol=_TOL, max_matvecs=_PRODUCTS,
        capacity=operator.plan.capacity, seed=member.spec.seed, recheck=0,
    )  # fmt: skip
    return sum(b.size for b in batches), part.loss, float(found.values_K[0])


def _of_class(objective: Objective, number: int) -> Iterator[Batch]:
    for batch, labels in zip(objective.batches, _labels(objective) or [], strict=True):
        chosen = torch.nonzero(labels == number).flatten().tolist()
        if chosen:
            yield batch.take(chosen)
