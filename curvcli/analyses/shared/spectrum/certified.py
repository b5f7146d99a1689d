"""Eigenpairs that a run has found, made fit to be shown: residuals, spread, rounding, check of a product."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.rules import (
    CHECK_LIMIT,
    KINKS,
    PRECISION,
    PRECISION_LIMIT,
    PRODUCTS,
    SINGLE_PRECISION,
    SUSPECT,
)
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
from curvcli.linalg.operator import ROUNDING, SMALL, random_unit_vector
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.double import STEPS, error_in_double
from curvcli.operators.curvature.gram import GramSpectrum
from curvcli.operators.curvature.rounding import product_error, saturation, shift
from curvcli.operators.curvature.spread import spread

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
    vectors shows beyond it; a converged pair that this would leave open gets its own product after all.

    Args:
        journal: where findings and notes go.
        operator: H.
        found: the pairs.
        tol: of `Eigenpair.converged`.
        groups: of a single batch for the spread; 0: no spread.
    """
    vectors_KN = found.vectors_KN
    spreads = spread(
        operator, vectors_KN, groups, lambda i: journal.progress(Stage("spread", i, None))
    )
    journal.progress(Stage("residuals", 0, None))
    products_KN = spreads.products_KN
    if products_KN is None and len(vectors_KN) > _FEW:
        probed = probe(operator, found)
        vector_N, product_N = probed.vector_N, probed.product_N
        weights_RK = combinations(vectors_KN)
        known_RN = torch.stack([product_N, recurred(found, weights_RK[1])])
        measured = _rounding(journal, operator, found, weights_RK @ vectors_KN, known_RN)
        certificate = certify_by_recurrence(found, probed, measured, operator.ranks)
        for i, (residual, limit) in enumerate(_limits(certificate, found, tol)):
            if found.converged_K[i] and residual > limit:
                v_N = vectors_KN[i]
                own = certify(
                    v_N[None], operator.matvec(v_N)[None], found.norm, measured, operator.ranks
                )
                certificate.values_K[i] = own.values_K[0]
                certificate.residuals_K[i] = own.residuals_K[0]
    else:
        if products_KN is None:
            products_KN = torch.stack([operator.matvec(v_N) for v_N in vectors_KN])
        weights_RK = combinations(vectors_KN)
        measured = _rounding(
            journal, operator, found, weights_RK @ vectors_KN, weights_RK @ products_KN
        )
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
    w_RN = combinations(vectors_KN) @ vectors_KN
    known = replace(found, vectors_KN=vectors_KN)
    rounding = gram.error + many * _rounding(journal, operator, known, w_RN, gram.products(w_RN))
    errors = spread(
        operator, vectors_KN, groups, lambda i: journal.progress(Stage("spread", i, None))
    )
    by_pair = dict(zip(clear, errors.standard_errors_K or [], strict=False))
    pairs = [
        Eigenpair(float(value), rounding, True, by_pair.get(i))
        for i, value in enumerate(found.values_K)
    ]
    return Certified(pairs, rounding, w_RN[0], operator.matvec(w_RN[0]))


def by_recurrence(
    journal: Journal, operator: Curvature[Any], found: LanczosResult
) -> tuple[list[Eigenpair], float]:
    """The pairs with the residuals of their recurrence, without a product of their own; and the rounding in them.

    Rounding is measured unless the run was stopped.
    """
    rounding = ROUNDING * torch.finfo(operator.dtype).eps * found.norm
    if journal.stop() is None:
        weights_RK = combinations(found.vectors_KN)
        known_RN = torch.stack([recurred(found, weights_K) for weights_K in weights_RK])
        rounding += _rounding(journal, operator, found, weights_RK @ found.vectors_KN, known_RN)
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
    w_RN: Tensor,
    product_RN: Tensor,
) -> float:
    """The rounding that all products share, see `product_error`; said where it matters."""
    measured = product_error(operator, w_RN, product_RN)
    if measured is None:
        journal.note("the rounding of products could not be measured: errors may be larger")
        return 0.0
    if measured.by == "rounded weights" and operator.dtype != torch.float64:
        journal.note(
            "rounding of products is measured at weights whose last digit was moved: they could not be repeated in "
            "float64"
        )
    moved = shift(found.vectors_KN, measured.error_RN, found.norm, operator.ranks)
    if measured.by == "rounded weights":
        moved += saturation(operator.objective) * found.norm
    if moved > PRECISION_LIMIT * found.norm:
        journal.find(
            PRECISION, "top",
            f"rounding in {dtype_name(operator)} moves these eigenvalues by up to {moved / found.norm:.1%} of "
            "the largest",
            value=moved / found.norm,
        )  # fmt: skip
    return moved


def dtype_name(operator: Curvature[Any]) -> str:
    """``float32``, say."""
    return str(operator.dtype).removeprefix("torch.")


class Checked(NamedTuple):
    """What finite differences say of a product."""

    difference: float | None
    """Relative; None: the dtype cannot resolve such a step."""
    wrong: bool
    """Whether the second derivative is wrong."""


class MatrixError(NamedTuple):
    """The rounding E of a whole matrix, from products with a random unit vector v and with u = Hv / ‖Hv‖."""

    frobenius: float
    """‖E‖_F: √n ‖E v‖ and ‖E u‖."""
    trace: float
    """|tr E|: n |vᵀEv| and |uᵀEu|, and what one v may miss, √2 ‖E‖_F."""


def check_random_product(
    journal: Journal, operator: Curvature[Any], seed: int
) -> tuple[Checked, MatrixError]:
    """The product with a random vector against finite differences, and against itself in a more exact arithmetic."""
    if journal.stop() is not None:
        return Checked(None, False), MatrixError(0.0, 0.0)
    vector_N = random_unit_vector(operator, torch.Generator().manual_seed(seed))
    product_N = operator.matvec(vector_N)
    checked = check_products(journal, operator, vector_N, product_N)
    error = _matrix_error(operator, vector_N, product_N)
    if error is None:
        journal.note("the rounding of products could not be measured: errors may be larger")
    return checked, error or MatrixError(0.0, 0.0)


def _matrix_error(
    operator: Curvature[Any], vector_N: Tensor, product_N: Tensor
) -> MatrixError | None:
    """From a random vector, which sees all of E but little of any one direction, and from what H makes of it."""
    spread = product_error(operator, vector_N[None], product_N[None])
    norm_of = operator.ranks.norm
    size = float(norm_of(product_N))
    if spread is None or size == 0:
        return None if spread is None else MatrixError(0.0, 0.0)
    leading_N = product_N / size
    focused = product_error(operator, leading_N[None], operator.matvec(leading_N)[None])
    if focused is None:
        return None
    root = operator.n**0.5
    # Vectors are stored in the operator's precision too.
    norm = root * (
        float(norm_of(spread.error_RN[0])) + ROUNDING * torch.finfo(operator.dtype).eps * size
    )
    if spread.by == "rounded weights":
        norm += saturation(operator.objective) * root * size
    norm = math.hypot(norm, float(norm_of(focused.error_RN[0])))
    seen, led = (
        abs(float(operator.ranks.dot(found.error_RN[0], v_N.to(found.error_RN))))
        for found, v_N in ((spread, vector_N), (focused, leading_N))
    )
    return MatrixError(norm, operator.n * seen + led + 2**0.5 * norm)


def check_products(
    journal: Journal, operator: Curvature[Any], vector_N: Tensor, product_N: Tensor
) -> Checked:
    """One product against finite differences; a large difference is attributed and reported."""
    check = operator.check(vector_N, product_N)
    if check is None:
        better = "" if operator.dtype == torch.float64 else " (--dtype float64 can)"
        journal.note(
            f"no check by finite differences: {dtype_name(operator)} cannot move the weights finely enough "
            f"in so sharp a direction{better}"
        )
    if check is None or check <= SUSPECT:
        return Checked(check, False)
    cause = error_in_double(operator, vector_N, SUSPECT)
    harmless = cause is not None and (cause.kink or cause.error <= SUSPECT)
    if check <= CHECK_LIMIT and (harmless or cause is None):
        return Checked(check, False)
    if cause is not None and cause.kink:
        journal.find(
            KINKS, "hvp_check",
            "the weights sit exactly on a kink of the loss (ReLU, max pooling): its two sides bend differently, and "
            f"these figures are those of one side ({check:.0%} off finite differences)",
            value=check,
        )  # fmt: skip
    elif cause is not None and cause.error <= SUSPECT and cause.step > STEPS[0]:
        journal.find(
            SINGLE_PRECISION, "hvp_check",
            f"finite differences of the gradient are off by {check:.0%}: parts of the network compute in float32 "
            f"whatever they are given; over a step of {cause.step:.0e} the products are right ({cause.error:.0e})",
            value=check,
        )  # fmt: skip
    elif cause is not None and cause.error <= SUSPECT:
        journal.find(
            KINKS, "hvp_check",
            f"the curvature changes within a small step, and is {check:.0%} off over it: kinks of the loss (ReLU, max "
            "pooling) lie close to these weights, or it bends sharply there; the products themselves are right (to "
            f"{cause.error:.0e}, checked in float64)",
            value=check,
        )  # fmt: skip
    else:
        journal.find(
            PRODUCTS, "hvp_check",
            f"products differ by {check:.0%} from finite differences of the gradient: the second derivative is wrong",
            value=check,
        )  # fmt: skip
        return Checked(check, True)
    return Checked(check, False)
