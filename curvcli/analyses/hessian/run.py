"""`curvcli hessian`: the ends of a curvature matrix's spectrum, each eigenvalue with its error."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from torch import Tensor

from curvcli.analyses.hessian.command import HessianOptions
from curvcli.analyses.hessian.findings import NOT_CONVERGED, ROUNDING
from curvcli.analyses.hessian.layers import look_at_layers
from curvcli.analyses.hessian.result import HessianResult, Sampled
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal, Reason, Stage
from curvcli.analyses.shared.spectrum.certified import (
    certified_gram,
    certified_pairs,
)
from curvcli.analyses.shared.spectrum.checked import check_products
from curvcli.analyses.shared.spectrum.eigenpairs import Eigenpair, Reach
from curvcli.analyses.shared.spectrum.matrices import Chosen, exact_spectrum
from curvcli.analyses.shared.spectrum.matrix_options import PreconditionerInfo
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import OutputError, UsageError
from curvcli.linalg.lanczos.factorization import LanczosState, start
from curvcli.linalg.lanczos.lanczos import LanczosResult, Progress, lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.lanczos.state import load_state, save_state
from curvcli.linalg.ranks import ALONE, all_see
from curvcli.linalg.tensor_file import Stored, write_tensors
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.fisher import Fisher
from curvcli.operators.curvature.gram import GramSpectrum
from curvcli.operators.curvature.layer_spectra import leading

CAPACITY = 200
SAVE_SECONDS = 30.0
"""Between two writings of the state, at least."""
SAVE_SHARE = 20.0
"""So many times as long as it took to write it, at least."""


def run(subject: Subject, options: HessianOptions, journal: Journal) -> Answer[HessianResult]:
    """Answer `curvcli hessian`; see `HessianOptions`.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    if options.top + options.bottom == 0:
        raise UsageError("no eigenvalue is asked for", "pass --top or --bottom")
    if options.per_layer and options.per_block:
        raise UsageError("--per-layer and --per-block were both asked for", "choose one of them")
    journal.progress(Stage("loading", 0, None))
    objective = subject.objective
    journal.progress(Stage("planning", 0, None, f"loss {objective.loss:.4g}"))
    wanted = Wanted(min(options.top, objective.n), min(options.bottom, objective.n), options.order)
    chosen = Chosen(options.matrix, options.draws, options.optimizer)
    operator, preconditioner = chosen.operator(
        subject, journal, wanted=wanted.count, preferred_capacity=CAPACITY
    )
    layers = options.per_layer or options.per_block
    if not (options.state or layers):
        gram = exact_spectrum(journal, operator, options.exact_rows)
        if gram is not None:
            found = _Found(gram.extremes(wanted.top, wanted.bottom), gram.others, gram.rest, gram)
            pairs, result = _result(journal, operator, found, options, preconditioner)
            return _with_vectors(journal, options, objective, result, found.pairs.vectors_KN)
    key = f"{subject.fingerprint()} {chosen}" if options.state else ""
    state = _resumed(subject, options, journal, operator, key)
    saved = _Saved(options.state, state, key, journal.agreed)
    found = _Found(_searched(options, journal, operator, wanted, state, saved))
    try:
        saved.now()
    except OutputError as error:  # the answer does not need it
        journal.note(f"the state is not that of this run: {error.message}")
    known = leading(state) if layers else None
    state.basis.drop()
    pairs, result = _result(journal, operator, found, options, preconditioner)
    if known is not None:
        per_layer = look_at_layers(
            journal, operator, found.pairs, pairs, known, options, subject.spec.seed
        )
        result = msgspec.structs.replace(result, per_layer=per_layer)
    return _with_vectors(journal, options, objective, result, found.pairs.vectors_KN)


class _Saved:
    """The run on disk, written again when the time since then is long against what writing takes.

    Args:
        path: where to; None: nowhere.
        state: the run.
        key: of the operator.
        agreed: whether something holds for any process of the run: each has a part of the state.
    """

    def __init__(
        self, path: str | None, state: LanczosState, key: str, agreed: Callable[[bool], bool]
    ) -> None:
        self._path, self._agreed = Path(path) if path else None, agreed
        self._state, self._key = state, key
        self._next = time.monotonic() + SAVE_SECONDS

    def now(self) -> None:
        """Write it; the file is the last state or this one, whatever happens meanwhile."""
        if self._path is None:
            return
        began = time.monotonic()
        save_state(self._path, self._state, self._key)
        ended = time.monotonic()
        self._next = ended + max(SAVE_SECONDS, SAVE_SHARE * (ended - began))

    def between_products(self) -> None:
        """Write it if it is due."""
        if self._path is None or not self._state.processed:
            return
        if self._agreed(time.monotonic() >= self._next):
            try:
                self.now()
            except OutputError:  # a full disk may have room again
                self._next = time.monotonic() + SAVE_SECONDS


class _Found(NamedTuple):
    """Pairs, and how many further eigenvalues are known exactly and alike."""

    pairs: LanczosResult
    others: int = 0
    rest: float = 0.0
    exact: GramSpectrum | None = None
    """All eigenvalues, where they were computed."""


def _resumed(
    subject: Subject,
    options: HessianOptions,
    journal: Journal,
    operator: Curvature[Any],
    key: str,
) -> LanczosState:
    """The run that --state names, or a new one."""
    capacity = operator.plan.capacity
    path = Path(options.state) if options.state else None
    if path is not None and not path.parent.is_dir():
        raise OutputError(
            f"--state: there is no folder {str(path.parent)!r}", "make it, or name another file"
        )
    if path is None or not all_see(path.exists(), path.name, operator.ranks):
        guess = subject.guess
        if guess is not None and len(guess.vector_N) == operator.n:
            return start(operator, capacity, guess.seed, guess.vector_N)
        return start(operator, capacity, subject.spec.seed)
    state = load_state(path, operator, capacity, key)
    journal.note(f"went on from {path.name} after {state.matvecs} products")
    return state


def _searched(
    options: HessianOptions,
    journal: Journal,
    operator: Curvature[Any],
    wanted: Wanted,
    state: LanczosState,
    saved: _Saved,
) -> LanczosResult:
    """The pairs that Lanczos finds."""

    def stop() -> Reason | None:
        saved.between_products()
        return journal.stop()

    def report(progress: Progress) -> None:
        expected = min(_expected(progress, options.recheck), options.max_matvecs)
        detail = f"{progress.converged} of {progress.wanted} converged"
        journal.progress(Stage("products", progress.matvecs, expected, detail))

    return lanczos(
        operator,
        wanted,
        tol=options.tol,
        max_matvecs=options.max_matvecs,
        probability=1 - options.probability,
        recheck=options.recheck,
        state=state,
        stop=stop,
        progress=report,
    )


def _result(
    journal: Journal,
    operator: Curvature[Any],
    found: _Found,
    options: HessianOptions,
    preconditioner: PreconditionerInfo | None,
) -> tuple[list[Eigenpair], HessianResult]:
    """The pairs that belong to the vectors of ``found``, and the answer, which has those known exactly too."""
    objective, pairs = operator.objective, found.pairs
    certified = (
        certified_pairs(journal, operator, pairs, options.tol, options.spread)
        if found.exact is None
        else certified_gram(journal, operator, found.exact, pairs, options.spread)
    )
    shown, rounding = certified.pairs, certified.rounding
    check = check_products(journal, operator, certified.vector_N, certified.product_N).difference
    sampled = None
    if isinstance(operator, Fisher):
        sampled = [Sampled(*q) for q in operator.quadratic(pairs.vectors_KN)]
    # Entries that no sample looks up are left out of vectors only where there is no weight decay. How many eigenvalues
    # lie before theirs is known once the others have converged.
    ranked = found.exact is not None or all(pairs.converged_K)
    zeros = found.others + objective.untouched
    known = zeros if ranked else 0
    unsure = found.exact is not None and not found.exact.certain
    exact = Eigenpair(found.rest, rounding * unsure, True, None if found.rest else 0.0)
    reach = [
        pairs.lower - rounding,
        pairs.upper + rounding,
        *([found.rest] if zeros else []),
    ]
    result = HessianResult(
        top=_with_known(shown[: pairs.top], exact, known, options.order, options.top),
        bottom=_with_known(shown[pairs.top :], exact, known, "smallest", options.bottom),
        reach=Reach(min(reach), max(reach), 1.0 if found.exact else options.probability),
        status=pairs.status,
        loss=objective.loss,
        gradient_norm=float(operator.ranks.norm(operator.gradient)),
        parameters=objective.dimension,
        untouched=objective.untouched,
        matrix=options.matrix,
        hvp_check=check,
        order=options.order,
        products=operator.strategy,
        micro_batch=operator.micro_batch,
        basis=operator.plan.capacity,
        restarts=pairs.restarts,
        copies_found=pairs.copies_found,
        method="gram" if found.exact else "lanczos",
        preconditioner=preconditioner,
        sampled=sampled,
    )
    _findings(journal, result, options.tol)
    return shown, result


def _with_known(
    pairs: list[Eigenpair],
    exact: Eigenpair,
    known: int,
    order: Literal["value", "magnitude", "smallest"],
    asked: int,
) -> list[Eigenpair]:
    """The ``asked`` first of the pairs and of ``known`` eigenvalues that are all ``exact``."""
    if not known:
        return pairs
    keys = {
        "value": lambda p: -p.value,
        "magnitude": lambda p: -abs(p.value),
        "smallest": lambda p: p.value,
    }
    return sorted([*pairs, *[exact] * min(known, asked)], key=keys[order])[:asked]


def _expected(progress: Progress, recheck: int) -> int:
    """A guess of the products a run will take, from how many pairs have converged so far."""
    first_guess = 2.2 * progress.wanted + 12
    ratio = progress.wanted / max(1, progress.converged)
    guess = max(first_guess, progress.matvecs * min(2.0, ratio**0.5))
    return int(guess) + recheck


def _findings(journal: Journal, result: HessianResult, tol: float) -> None:
    pairs = [*result.top, *result.bottom]
    open_ = sum(not p.converged for p in pairs)
    if open_ and result.status == "converged":
        journal.find(
            ROUNDING,
            "top",
            f"{open_} of {len(pairs)} residuals stay above the tolerance because of rounding",
            value=max(p.residual for p in pairs if not p.converged),
            threshold=tol,
        )
    elif open_:
        journal.cut_short()
        reason = {
            "max_matvecs": "the budget of products ran out (raise --max-matvecs)",
            "timeout": "the time ran out (raise --timeout)",
            "interrupted": "it was interrupted",
        }[str(result.status)]
        journal.find(
            NOT_CONVERGED,
            "top",
            f"{open_} of {len(pairs)} eigenvalues have not converged: {reason}",
            value=float(open_),
        )


def _with_vectors(
    journal: Journal,
    options: HessianOptions,
    objective: Objective,
    result: HessianResult,
    vectors_KN: Tensor,
) -> Answer[HessianResult]:
    """The answer with the eigenvectors, which are saved where that is asked for."""
    names = tuple(objective.names)
    answer = journal.answer(result, vectors_KN=vectors_KN, layout=objective.layout, names=names)
    if options.save_vectors is not None:
        values = ",".join(repr(p.value) for p in [*result.top, *result.bottom])
        metadata = {"format": "curvcli-vectors/1", "matrix": result.matrix, "eigenvalues": values}
        # One tensor of one vector at a time: divided vectors are nowhere whole.
        tensors = {
            held.name: Stored(
                vectors_KN.dtype,
                (len(vectors_KN), *held.shape),
                partial(_of_each, objective, vectors_KN, i),
            )
            for i, held in enumerate(objective.tensors)
        }
        ranks = objective.ranks if objective.divided else ALONE
        try:
            write_tensors(Path(options.save_vectors), tensors, metadata, ranks)
        except OSError as error:
            raise OutputError(
                f"{options.save_vectors!r} cannot be written: {error.strerror}",
                "name another file by --save-vectors",
            ) from None
    return answer


def _of_each(objective: Objective, vectors_KN: Tensor, index: int) -> Iterator[Tensor]:
    """What each vector has of one parameter."""
    return (objective.whole(v_N, index) for v_N in vectors_KN)
