"""Eigenpairs that a run has found, made fit to be shown: residuals, spread, rounding, check of a product."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from curvcli.analyses.shared.journal import Journal, Stage, TimeIsUpError
from curvcli.analyses.shared.rules import (
    PRECISION,
    PRECISION_LIMIT,
)
from curvcli.analyses.shared.spectrum.checked import dtype_name
from curvcli.analyses.shared.spectrum.eigenpairs import Eigenpair
from curvcli.linalg.lanczos.certify import (
    Certificate,
    certify,
    certify_by_recurrence,
    combinations,
    probe,
    recurred,
)
from curvcli.linalg.lanczos.lanczos import LanczosResult
from curvcli.linalg.operator import PIECE, ROUNDING, SMALL, random_unit_vector
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.gram import GramSpectrum
from curvcli.operators.curvature.rounding import product_error, saturation, shift
from curvcli.operators.curvature.spread import Spread, spread

_EARLY = "ended early: residuals are those of the Lanczos recurrence, not of extra products"
# For so few pairs each one's own product is cheap.
_FEW = 3


class Certified(NamedTuple):
    """Eigenpairs with their errors."""

    pairs: list[Eigenpair]
    rounding: float
    """Error of a product that moves an eigenvalue."""
    vector_N: Tensor
    """A vector whose product is known,"""
    product_N: Tensor
    """and this product."""


def certified_pairs(
    journal: Journal,
    operator: Curvature[Any],
    found: LanczosResult,
    tol: float,
    groups: int = 0,
) -> Certified:
    """Residuals, spread over the data and rounding of what a run has found.

    Residuals are those of products H v where there are such: a few pairs, or several batches whose spread is asked
    for. Otherwise they are those of the recurrence, widened by what a product with a random combination of all Ritz
    vectors shows beyond it; a converged pair that this would leave open gets its own product after all. Where time ends
    on the way they are those of `by_recurrence`.

    Args:
        journal: where findings and notes go.
        operator: H.
        found: the pairs.
        tol: of `Eigenpair.converged`.
        groups: of a single batch for the spread; 0: no spread.
    """
    spreads = Spread(None, None)
    try:
        spreads = _spread(journal, operator, found.vectors_KN, groups)
        return _certified(journal, operator, found, tol, spreads)
    except TimeIsUpError:
        journal.cut_short(_EARLY)
    pairs, rounding = by_recurrence(journal, operator, found)
    errors = spreads.standard_errors_K or []
    pairs[: len(errors)] = [
        msgspec.structs.replace(pair, batch_standard_error=error)
        for pair, error in zip(pairs, errors, strict=False)
    ]
    largest = int(abs(found.values_K).argmax())
    one_K = torch.eye(len(pairs)).to(found.vectors_KN)[largest]
    return Certified(pairs, rounding, found.vectors_KN[largest], recurred(found, one_K))


def _certified(
    journal: Journal, operator: Curvature[Any], found: LanczosResult, tol: float, spreads: Spread
) -> Certified:
    """See `certified_pairs`.

    Raises:
        TimeIsUpError: it is, between two products.
    """
    vectors_KN = found.vectors_KN
    journal.progress(Stage("residuals", 0, None))
    products_KN = spreads.products_KN
    journal.go_on()
    if products_KN is None and len(vectors_KN) > _FEW:
        probed = probe(operator, found)
        vector_N, product_N = probed.vector_N, probed.product_N
        weights_RK = combinations(vectors_KN)
        known = (lambda: product_N, lambda: recurred(found, weights_RK[1]))
        measured = _rounding(journal, operator, found, weights_RK, known)
        certificate = certify_by_recurrence(found, probed, measured, operator.ranks)
        for i, (residual, limit) in enumerate(_limits(certificate, found, tol)):
            if found.converged_K[i] and residual > limit:
                if journal.stop() is not None:  # what was measured by now holds, and is wide
                    journal.cut_short(_EARLY)
                    break
                v_N = vectors_KN[i]
                own = certify(
                    v_N[None], operator.matvec(v_N)[None], found.norm, measured, operator.ranks
                )
                certificate.values_K[i] = own.values_K[0]
                certificate.residuals_K[i] = own.residuals_K[0]
    else:
        if products_KN is None:
            products_KN = torch.zeros_like(vectors_KN)
            for product_N, v_N in zip(products_KN, vectors_KN, strict=True):
                journal.go_on()
                product_N.copy_(operator.matvec(v_N))
        weights_RK = combinations(vectors_KN)
        products = [partial(torch.matmul, weights_K, products_KN) for weights_K in weights_RK]
        measured = _rounding(journal, operator, found, weights_RK, products)
        largest = int(abs(found.values_K).argmax())
        vector_N, product_N = vectors_KN[largest], products_KN[largest]
        certificate = certify(vectors_KN, products_KN, found.norm, measured, operator.ranks)
    errors: list[float] | list[None] = spreads.standard_errors_K or [None] * len(vectors_KN)
    pairs = [
        Eigenpair(value, residual, residual <= limit, error)
        for value, (residual, limit), error in zip(
            certificate.values_K.tolist(), _limits(certificate, found, tol), errors, strict=True
        )
    ]
    return Certified(pairs, certificate.rounding, vector_N, product_N)


def _spread(journal: Journal, operator: Curvature[Any], vectors_KN: Tensor, groups: int) -> Spread:
    """`spread`, part by part while there is time."""

    def part(index: int) -> None:
        journal.go_on(together=False)
        journal.progress(Stage("spread", index, None))

    journal.go_on()
    return spread(operator, vectors_KN, groups, part)


def certified_gram(
    journal: Journal,
    operator: Curvature[Any],
    gram: GramSpectrum,
    found: LanczosResult,
    groups: int,
) -> Certified:
    """Pairs of an exact spectrum: its values with their error, the rounding of the rows, and the spread.

    Args:
        journal: where findings and notes go.
        operator: the matrix.
        gram: its spectrum.
        found: the pairs of it that are shown.
        groups: of a single batch for the spread; 0: no spread.
    """
    floor = gram.rest + gram.error
    clear = [i for i, value in enumerate(found.values_K) if value > floor and gram.rank] or [0]
    vectors_KN, many = found.vectors_KN[clear], 1.0
    if (
        not gram.rank
    ):  # a matrix that is zero has no directions of its own: one of all n stands for them
        vectors_KN = random_unit_vector(operator, torch.Generator().manual_seed(0))[None]
        many = math.sqrt(operator.n)
    weights_RK = combinations(vectors_KN)
    w_RN = weights_RK @ vectors_KN
    known = replace(found, vectors_KN=vectors_KN)
    rounding, errors, product_N = gram.error, Spread(None, None), gram.products(w_RN)
    try:
        products = [partial(product_N.__getitem__, r) for r in range(len(product_N))]
        rounding += many * _rounding(journal, operator, known, weights_RK, products)
        errors = _spread(journal, operator, vectors_KN, groups)
        product_N = operator.matvec(w_RN[0])[None]
    except TimeIsUpError:
        journal.cut_short("time ended before rounding and spread of the eigenvalues were measured")
    by_pair = dict(zip(clear, errors.standard_errors_K or [], strict=False))
    pairs = [
        Eigenpair(float(value), rounding, True, by_pair.get(i))
        for i, value in enumerate(found.values_K)
    ]
    return Certified(pairs, rounding, w_RN[0], product_N[0])


def by_recurrence(
    journal: Journal, operator: Curvature[Any], found: LanczosResult
) -> tuple[list[Eigenpair], float]:
    """The pairs with the residuals of their recurrence, without a product of their own; and the rounding in them.

    Rounding is measured unless the run is stopped before.
    """
    rounding = ROUNDING * torch.finfo(operator.dtype).eps * found.norm
    weights_RK = combinations(found.vectors_KN)
    products = [partial(recurred, found, weights_K) for weights_K in weights_RK]
    with suppress(TimeIsUpError):
        rounding += _rounding(journal, operator, found, weights_RK, products)
    pairs = [
        Eigenpair(float(v), float(b) + rounding, c, None)
        for v, b, c in zip(found.values_K, found.bounds_K, found.converged_K, strict=True)
    ]
    return pairs, rounding


def _limits(
    certificate: Certificate, found: LanczosResult, tol: float
) -> list[tuple[float, float]]:
    """(residual, what it must not exceed) of each pair."""
    values = certificate.values_K.tolist()
    norm = max(found.norm, *(abs(v) for v in values))
    return [
        (residual, tol * max(abs(value), SMALL * norm))
        for value, residual in zip(values, certificate.residuals_K.tolist(), strict=True)
    ]


def _rounding(
    journal: Journal,
    operator: Curvature[Any],
    found: LanczosResult,
    weights_RK: Tensor,
    products: Sequence[Callable[[], Tensor]],
) -> float:
    """The rounding that all products share, see `product_error`; said where it matters.

    Args:
        journal: where findings and notes go.
        operator: H.
        found: the vectors.
        weights_RK: of the combinations whose products are measured; long ones one by one, for the memory.
        products: H times each, as computed.
    """
    moved, by = 0.0, set[str]()
    together = len(weights_RK) if operator.n < PIECE else 1
    for first in range(0, len(weights_RK), together):
        some = slice(first, first + together)
        journal.go_on()
        measured = product_error(
            operator, weights_RK[some] @ found.vectors_KN, torch.stack([h() for h in products[some]]),
            lambda: journal.go_on(together=False),
        )  # fmt: skip
        if measured is None:
            journal.note("the rounding of products could not be measured: errors may be larger")
            return 0.0
        by.add(measured.by)
        moved = max(moved, shift(found.vectors_KN, measured.error_RN, found.norm, operator.ranks))
    if "rounded weights" in by:
        moved += saturation(operator.objective) * found.norm
        if operator.dtype != torch.float64:
            journal.note(
                "rounding of products is measured at weights whose last digit was moved: they could not be repeated in "
                "float64"
            )
    if moved > PRECISION_LIMIT * found.norm:
        journal.find(
            PRECISION, "top",
            f"rounding in {dtype_name(operator)} moves these eigenvalues by up to {moved / found.norm:.1%} of "
            "the largest",
            value=moved / found.norm,
        )  # fmt: skip
    return moved
