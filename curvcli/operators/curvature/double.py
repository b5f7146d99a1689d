"""The same products in float64: how much of a product is a kink of the surface, or a wrong derivative."""

from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from curvcli.errors import CurvError
from curvcli.linalg.vectors import double
from curvcli.objective.float64 import in_double
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.hessian import Hessian

C = TypeVar("C", bound=Curvature[Any])

# No kink lies within the first of these steps; the others stand out from the rounding of networks that compute parts
# in float32 whatever they are given.
STEPS = (1e-7, 1e-5, 1e-4, 1e-3, 1e-2)
# Bytes of the copy for each parameter: weights, vectors and gradients in float64; and of each further vector.
_BYTES, _FURTHER = 8 * 8, 5 * 8


class Cause(NamedTuple):
    """Why a product differs from a finite difference of the gradient."""

    error: float
    """The smallest relative difference in float64,"""
    step: float
    """and the length of that step."""
    kink: bool = False
    """The gradient itself has a kink at these weights: it moves differently on both sides."""


def error_in_double(
    operator: Curvature[Any], v_N: Tensor, enough: float, samples: int = 4
) -> Cause | None:
    """`Curvature.check` of a product in float64, over tiny steps on a few samples.

    Kinks of the surface (ReLU) make a derivative and a difference differ over any finite step that crosses one; a
    step of 1e-7 crosses none, so that what is left is an error of a derivative, or the rounding of a network that
    computes parts in float32 (losses and normalisations of language models). That falls as the step grows: longer
    ones are tried until the error is at most ``enough``. Weights may sit on a kink (a minimum often does): then the
    derivative agrees with the difference to one side, or both sides differ. A wrong derivative differs over all steps,
    from two sides that agree.

    Returns:
        None where this cannot be tried (the model cannot be copied, or runs only in its own dtype).
    """
    best: Cause | None = None
    try:
        twin = twin_in_double(operator, samples)
        wide_N = double(v_N)
        exact_N = twin.matvec(wide_N)
        for step in STEPS:
            found = twin.check(wide_N, exact_N, length=step)
            if found is not None and (best is None or found < best.error):
                best = Cause(found, step)
            if best is not None and best.error <= enough:
                return best
        if isinstance(twin, Hessian):
            return _on_a_kink(twin, wide_N, exact_N, enough) or best
    except UNABLE:
        return best
    return best


def _on_a_kink(twin: Hessian, v_N: Tensor, exact_N: Tensor, enough: float) -> Cause | None:
    """The cause, if the gradient has a kink at these weights."""
    sides = twin.one_sided(v_N, STEPS[0])
    norm = twin.ranks.norm
    scale = max(float(norm(x_N)) for x_N in (exact_N, *sides))
    if scale == 0:
        return None
    errors = [float(norm(exact_N - side_N)) / scale for side_N in sides]
    apart = float(norm(sides[0] - sides[1])) / scale
    if min(errors) <= enough or apart > enough:
        return Cause(min(errors), STEPS[0], kink=True)
    return None


# Copying a model, or running it in another dtype, may fail in any of these ways.
UNABLE = (CurvError, RuntimeError, TypeError, NotImplementedError, AttributeError, ValueError)


def twin_in_double(operator: C, samples: int, vectors: int = 1) -> C:
    """The operator on a float64 copy of the model and ``samples`` from all over the first batch.

    Args:
        operator: in its own precision.
        samples: of the copy.
        vectors: that it will be multiplied with at a time.

    Raises:
        RuntimeError: a copy does not fit.
    """
    objective = operator.objective
    needed = operator.length * (_BYTES + _FURTHER * (vectors - 1))
    if operator.ranks.largest(int(needed > operator.room())):
        raise RuntimeError("a copy of the model in float64 does not fit in memory")
    piece = objective.batches[0]
    if operator.micro_batch is not None:
        # Twice the bytes, and on a CPU as much again: its float64 convolutions unfold their input.
        samples = min(samples, max(1, operator.micro_batch // 4))
    if objective.splittable and piece.size > samples:
        piece = piece.take(range(0, piece.size, piece.size // samples)[:samples])
    model, batch = in_double(objective.model, piece, objective.device)
    return operator.twin(objective.twin(model, [batch]))
