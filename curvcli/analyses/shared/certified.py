"""Eigenpairs that a run has found, made fit to be shown: residuals, spread, rounding, check of a product."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from curvcli.analyses.shared.eigenpairs import Eigenpair
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.product_rules import (
    CHECK_LIMIT,
    KINKS,
    PRECISION,
    PRECISION_LIMIT,
    PRODUCTS,
    SINGLE_PRECISION,
)
from curvcli.linalg.lanczos.certify import Certificate, certify, certify_by_recurrence, probe
from curvcli.linalg.lanczos.lanczos import LanczosResult
from curvcli.linalg.operator import ROUNDING, SMALL
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.double import STEPS, error_in_double, rounding_in_double
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
        context: where findings and notes go.
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
    measured = _rounding(journal, operator, found, rounding_in_double(operator, vectors_KN))
    products_KN = spreads.products_KN
    largest = int(abs(found.values_K).argmax())
    if products_KN is None and len(vectors_KN) > _FEW:
        probed = probe(operator, found)
        vector_N, product_N = probed.vector_N, probed.product_N
        certificate = certify_by_recurrence(found, probed, measured)
        for i, (residual, limit) in enumerate(_limits(certificate, found, tol)):
            if found.converged_K[i] and residual > limit:
                v_N = vectors_KN[i]
                own = certify(v_N[None], operator.matvec(v_N)[None], found.norm, measured)
                certificate.values_K[i] = own.values_K[0]
                certificate.residuals_K[i] = own.residuals_K[0]
    else:
        if products_KN is None:
            products_KN = torch.stack([operator.matvec(v_N) for v_N in vectors_KN])
        vector_N, product_N = vectors_KN[largest], products_KN[largest]
        certificate = certify(vectors_KN, products_KN, found.norm, measured)
    errors: list[float] | list[None] = spreads.standard_errors_K or [None] * len(vectors_KN)
    pairs = [
        Eigenpair(value, residual, residual <= limit, error)
        for value, (residual, limit), error in zip(
            certificate.values_K.tolist(), _limits(certificate, found, tol), errors, strict=True
        )
    ]
    return Certified(pairs, certificate.rounding, vector_N, product_N)


def by_recurrence(operator: Curvature[Any], found: LanczosResult) -> tuple[list[Eigenpair], float]:
    """The pairs of a run that ended early, with the residuals of its recurrence; and the rounding in them."""
    rounding = ROUNDING * torch.finfo(operator.dtype).eps * found.norm
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
    journal: Journal, operator: Curvature[Any], found: LanczosResult, measured: float | None
) -> float:
    """The rounding that all products share, as measured in float64; said where it matters."""
    if measured is None:
        journal.note("rounding of products is estimated: they could not be repeated in float64")
    elif measured > PRECISION_LIMIT * found.norm:
        journal.find(
            PRECISION,
            "top",
            f"{dtype_name(operator)} resolves this curvature only to {measured / found.norm:.1%}, as measured on "
            "some samples; others may be worse",
            value=measured / found.norm,
        )
    return measured or 0.0


def dtype_name(operator: Curvature[Any]) -> str:
    """``float32``, say."""
    return str(operator.dtype).removeprefix("torch.")


def check_products(
    journal: Journal, operator: Curvature[Any], vector_N: Tensor, product_N: Tensor
) -> float | None:
    """One product against finite differences; a large difference is attributed and reported."""
    check = operator.check(vector_N, product_N)
    if check is None:
        journal.note(
            f"no check by finite differences: {dtype_name(operator)} cannot move the weights finely enough "
            "in so sharp a direction (--dtype float64 can)"
        )
    elif check > CHECK_LIMIT:
        cause = error_in_double(operator, vector_N, CHECK_LIMIT)
        if cause is not None and cause[0] <= CHECK_LIMIT and cause[1] > STEPS[0]:
            journal.find(
                SINGLE_PRECISION,
                "hvp_check",
                f"finite differences of the gradient are off by {check:.0%}: parts of the network compute in float32 "
                f"whatever they are given; over a step of {cause[1]:.0e} the products are right ({cause[0]:.0e})",
                value=check,
            )
        elif cause is not None and cause[0] <= CHECK_LIMIT:
            journal.find(
                KINKS,
                "hvp_check",
                f"a small step feels a curvature that differs by {check:.0%} from the second derivative: "
                "kinks (ReLU, max) lie near these weights; products themselves are right "
                f"({cause[0]:.0e} in float64)",
                value=check,
            )
        elif cause is None:
            journal.find(
                KINKS,
                "hvp_check",
                f"products differ by {check:.0%} from finite differences of the gradient: kinks near these weights, or "
                "a wrong derivative; which of them cannot be told, since no copy in float64 can be made",
                value=check,
            )
        else:
            journal.find(
                PRODUCTS,
                "hvp_check",
                f"products differ by {check:.0%} from finite differences of the gradient: the second "
                "derivative is wrong",
                value=check,
            )
    return check
