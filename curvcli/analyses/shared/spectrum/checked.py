"""Products held against finite differences and a more exact arithmetic, and what differs attributed."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.rules import CHECK_LIMIT, KINKS, PRODUCTS, SINGLE_PRECISION, SUSPECT
from curvcli.linalg.operator import ROUNDING, random_unit_vector
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.double import STEPS, error_in_double
from curvcli.operators.curvature.rounding import product_error, saturation


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
    """One product against finite differences, if there is time; a large difference is attributed and reported."""
    if journal.stop() is not None:
        return Checked(None, False)
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
