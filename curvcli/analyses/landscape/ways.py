"""The directions that options choose, and the checkpoints that lie along them.

Shapes: ``N`` parameters.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from curvcli.analyses.landscape.adam import adam_step
from curvcli.analyses.landscape.command import LandscapeOptions
from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.shared.targets import series_in
from curvcli.errors import LossError, UsageError, some
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.operator import random_unit_vector
from curvcli.linalg.ranks import Ranks
from curvcli.linalg.run_log import Logged, RunLog
from curvcli.machine.memory import check_fits
from curvcli.objective.sharding.shards import is_shard
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.surface.directions import (
    filter_normalised,
    orthogonal_to,
    principal,
)

# Beyond the checkpoints, as a share; lengths of a random direction; steps of Adam.
_MARGIN, _RANDOM, _STEPS = 0.25, 1.0, 10.0
# Of the eigenvectors, relative.
_TOL = 1e-2


@dataclass(frozen=True)
class Way:
    """A direction Δ."""

    name: str
    delta_N: Tensor
    low: float | None = None
    high: float | None = None
    """Places to look between; None: as far as curvature says."""


@dataclass
class Ways:
    """What is looked along."""

    ways: list[Way]
    marks: list[tuple[str, list[float], float]] = field(default_factory=list)
    """Checkpoints: name, place, distance from the line or plane."""
    shares: list[float] = field(default_factory=list)
    """Of the variance of a series."""
    cosine: float | None = None


@dataclass(frozen=True)
class Read:
    """What comes from files."""

    offsets: list[tuple[str, Tensor]]
    """θ' − θ of the other checkpoints."""
    adam_N: Tensor | None

    def digest(self, ranks: Ranks) -> str:
        """SHA-256 of it; of divided vectors, one after the other of each process' part."""
        found = hashlib.sha256()
        for vector_N in (*(v_N for _, v_N in self.offsets), self.adam_N):
            if vector_N is not None:
                flat = vector_N.detach().cpu().contiguous().view(torch.uint8)
                found.update(flat.numpy().tobytes())
        return "".join(
            ranks.collected([found.hexdigest()]) if ranks.parted else [found.hexdigest()]
        )


def read(subject: Subject, options: LandscapeOptions) -> Read:
    """The other checkpoints, and the step of the optimizer, where they are asked for.

    Raises:
        CurvError: a file cannot be read, or is of another model.
    """
    pca = "pca" in options.along
    files = [f for name in options.to for f in (series_in(name) if pca else [name])]
    if pca and len(files) < 2:
        raise UsageError(
            f"the plane of a series needs at least two checkpoints beside the weights, found {len(files)}",
            "name them by --to, repeatedly or as their directory",
        )
    objective = subject.objective
    size = objective.length * objective.dtype.itemsize * (len(files) + 3)
    check_fits(
        size, subject.spec.memory_bytes, f"{len(files)} checkpoints" if files else "the line"
    )
    offsets = [(Path(f).name, _offset(subject, f)) for f in files]
    return Read(offsets, adam_step(subject, options.optimizer) if "adam" in options.along else None)


def _offset(subject: Subject, path: str) -> Tensor:
    objective, there = subject.objective, subject.weights_in(path)
    fixed = {n: p for n, p in objective.model.named_parameters() if n not in objective.names}
    differ = {n: not torch.equal(p.detach(), there[n]) for n, p in fixed.items() if n in there}
    if objective.ranks.largest(int(any(differ.values()))):
        told = some([n for n, unlike in differ.items() if unlike and not is_shard(n)], 3)
        subject.notes.append(
            f"{Path(path).name} differs also in {told or 'frozen weights'}, which stay as they are: they are no part "
            "of θ"
        )
    return objective.flatten([there[name] for name in objective.names]) - objective.flat()


def choose(
    subject: Subject,
    options: LandscapeOptions,
    journal: Journal,
    operator: Hessian,
    found: Read,
    log: RunLog,
) -> Ways:
    """The one or two directions.

    Raises:
        LossError: a direction is zero.
    """
    if "pca" in options.along:
        return _series(found, options, operator.ranks)
    names = names_of(options)
    vectors = _named(subject, options, journal, operator, found, names, log)
    margin = options.radius or _MARGIN
    made = Ways([])
    for name, delta_N in zip(names, vectors, strict=True):
        if float(operator.ranks.norm(delta_N)) == 0:
            raise LossError(
                f"the direction {name} is zero",
                "the checkpoint has the same weights: name another"
                if name.startswith("to ")
                else "name another by --along",
            )
        if name.startswith("to "):
            way = Way(name, delta_N, -margin, 1 + margin)
        elif name == "random":
            far = options.radius or _RANDOM
            way = Way(name, delta_N, -far, far)
        elif name == "adam":
            far = options.radius or _STEPS
            way = Way(name, delta_N, -far, far)
        else:
            way = Way(
                name,
                delta_N,
                *(() if options.radius is None else (-options.radius, options.radius)),
            )
        made.ways.append(way)
    places = [[float(i == k) for i in range(len(names))] for k in range(len(names))]
    if len(names) == 2:
        _made_orthogonal(made, places, margin, operator.ranks)
    if len(set(names)) < len(names):
        made.ways = [
            dataclasses.replace(w, name=f"{w.name} {i + 1}") for i, w in enumerate(made.ways)
        ]
    if found.offsets:
        made.marks = [("here", [0.0] * len(names), 0.0)]
        made.marks += [
            (name.removeprefix("to "), place, 0.0)
            for name, place in zip(names, places, strict=True)
            if name.startswith("to ")
        ]
    return made


def names_of(options: LandscapeOptions) -> list[str]:
    """The directions by name, as many as there are axes.

    Raises:
        UsageError: too many or too few.
    """
    names = [*(f"to {Path(t).name}" for t in options.to), *options.along] or ["random"]
    dims = options.dims or min(2, len(names))
    if len(names) < dims and names[-1] in ("random", "eigen"):
        names.append(names[-1])
    if len(names) < dims:
        raise UsageError(
            f"a map needs two directions, and there is one: {names[0]}",
            "name another by --along or --to, or pass --dims 1",
        )
    if len(names) > dims:
        raise UsageError(
            f"{'a curve has one direction' if dims == 1 else 'a map has two directions'}, "
            f"not {len(names)}: {', '.join(names)}",
            "leave some out; --along pca shows a series of checkpoints",
        )
    return names


def _named(
    subject: Subject,
    options: LandscapeOptions,
    journal: Journal,
    operator: Hessian,
    found: Read,
    names: Sequence[str],
    log: RunLog,
) -> list[Tensor]:
    """The vectors of these names."""
    generator = torch.Generator().manual_seed(subject.spec.seed + 1)
    eigen = _eigenvectors(subject, options, journal, operator, names, log)
    offsets = iter(v_N for _, v_N in found.offsets)
    vectors: list[Tensor] = []
    for name in names:
        if name.startswith("to "):
            vectors.append(next(offsets))
        elif name == "random":
            vectors.append(
                filter_normalised(operator.objective, random_unit_vector(operator, generator))
            )
        elif name == "gradient":
            length = float(operator.ranks.norm(operator.gradient))
            vectors.append(operator.gradient / -length if length else operator.gradient)
        elif name == "adam" and found.adam_N is not None:
            vectors.append(found.adam_N)
        else:
            vector_N = eigen[name].pop(0)
            uphill = float(operator.ranks.dot(vector_N, operator.gradient)) > 0
            vectors.append(-vector_N if uphill else vector_N)
    return vectors


def _eigenvectors(
    subject: Subject,
    options: LandscapeOptions,
    journal: Journal,
    operator: Hessian,
    names: Sequence[str],
    log: RunLog,
) -> dict[str, list[Tensor]]:
    top, bottom = names.count("eigen"), names.count("bottom")
    if top + bottom > operator.n or bottom > 1:
        raise UsageError(
            f"there are not so many directions: {', '.join(names)}", "leave one of them out"
        )
    if not top + bottom:
        return {}
    run = lanczos(
        Logged(operator, log), Wanted(top, bottom), tol=_TOL, max_matvecs=options.max_matvecs,
        capacity=operator.plan.capacity, seed=subject.spec.seed, recheck=0, stop=journal.stop,
    )  # fmt: skip
    if run.status != "converged":
        journal.note(
            "the eigenvectors have not converged (raise --max-matvecs): the directions are near them"
        )
    vectors = list(run.vectors_KN)
    return {"eigen": vectors[:top], "bottom": vectors[top:]}


def _made_orthogonal(made: Ways, places: list[list[float]], margin: float, ranks: Ranks) -> None:
    """The second direction orthogonal to the first, unless both are random; checkpoints keep their places in space."""
    first, second = made.ways
    lengths = [float(ranks.norm(w.delta_N)) for w in made.ways]
    made.cosine = float(ranks.dot(first.delta_N, second.delta_N)) / (lengths[0] * lengths[1])
    if first.name == second.name == "random":
        return
    delta_N, share = orthogonal_to(first.delta_N, second.delta_N, ranks)
    if float(ranks.norm(delta_N)) <= 1e-6 * lengths[1]:
        raise LossError(
            f"{first.name} and {second.name} are one direction", "name another, or pass --dims 1"
        )
    made.ways[1] = dataclasses.replace(second, delta_N=delta_N)
    places[1][0] = share
    if second.name.startswith("to ") and first.low is not None and first.high is not None:
        low, high = min(first.low, share - margin), max(first.high, share + margin)
        made.ways[0] = dataclasses.replace(first, low=low, high=high)


def _series(found: Read, options: LandscapeOptions, ranks: Ranks) -> Ways:
    """The principal directions of the series and the weights, and their path."""
    names = [*(name for name, _ in found.offsets), "here"]
    offsets = [*(v_N for _, v_N in found.offsets), torch.zeros_like(found.offsets[0][1])]
    if (
        float(ranks.norm(offsets[-2])) == 0
    ):  # the last of the series is the checkpoint that is inspected
        names, offsets = [*names[:-2], f"{names[-2]} (here)"], offsets[:-1]
    seen = principal(offsets, options.dims or 2, ranks)
    if not seen.directions:
        raise UsageError(
            "all checkpoints of the series have the same weights", "name others by --to"
        )
    ways, margin = [], options.radius or _MARGIN
    widths = (seen.coordinates_KD.max(0).values - seen.coordinates_KD.min(0).values).tolist()
    for i, delta_N in enumerate(seen.directions):
        column = seen.coordinates_KD[:, i]
        room = margin * max(widths[i], 0.2 * max(widths))
        low, high = float(column.min()) - room, float(column.max()) + room
        ways.append(Way(f"component {i + 1}", delta_N, low, high))
    marks = [
        (name, place, float(rest))
        for name, place, rest in zip(names, seen.coordinates_KD.tolist(), seen.rest_K, strict=True)
    ]
    return Ways(ways, marks, seen.shares, 0.0 if len(ways) == 2 else None)
