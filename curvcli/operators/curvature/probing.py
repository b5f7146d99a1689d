"""Which kernels a network needs so that products exist: found by a product on a few samples."""

import copy
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from curvcli.errors import CurvError
from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.machine.memory import not_of_memory
from curvcli.objective.batch import Batch
from curvcli.objective.float64 import in_double
from curvcli.objective.objective import Objective
from curvcli.operators.autodiff.kernels import PLAIN, Kernels, lacks_derivative

# Samples of the smallest piece on which a derivative is tried.
PROBE = 2
# So many pieces, from all over a batch, are looked at for one that is not fitted yet.
_PIECES = 32

# Relative asymmetry that rounding explains, in single precision and in double: networks amplify it. Derivatives that
# are wrong in torch (normalisation differentiated three times, fused weight normalisation) are off by a tenth and more.
ASYMMETRY = (2e-2, 1e-6)


class _Matrix(Protocol):
    """What a matrix is made of, as far as it is needed here."""

    objective: Objective
    dtype: torch.dtype
    device: torch.device


C = TypeVar("C", bound=_Matrix)


def find_kernels(
    kernels: Kernels,
    batches: Sequence[Batch],
    probe: Callable[[Batch], str | float],
    loss: Callable[[Batch], float],
    tolerance: float,
    is_rounding: Callable[[Batch], bool | None],
) -> tuple[bool, list[str]]:
    """Switch kernels until products work on a piece of each batch that may differ from the others.

    Args:
        kernels: are switched.
        batches: of the objective.
        probe: names of operations without a derivative, or the relative asymmetry of the matrix of a piece.
        loss: of a piece, per loss term.
        tolerance: beyond this it is no rounding in most networks.
        is_rounding: whether it is gone in float64: asymmetry that stays is a wrong derivative. None: cannot be told.

    Returns:
        Whether it works now, and notes on what was switched.
    """
    notes: list[str] = []
    for batch in _distinct(batches):
        piece = next(iter(batch.pieces(PROBE)))
        while isinstance(found := _tried(piece, probe), str):
            note = kernels.switch_for(found)
            if note is None:
                # Torch's own operations alone did not help either.
                notes = [n for n in notes if n != PLAIN]
                notes.append(f"{_culprit(found)} has no second derivative")
                return False, notes
            notes.append(note)
        if found > tolerance:
            # Of samples that are fitted already, rounding is all the curvature there is.
            piece = max(_pieces(batch), key=loss)
            found = _tried(piece, probe)
        if isinstance(found, str) or found <= tolerance:
            continue
        rounding = is_rounding(piece)
        if rounding:
            notes.append(f"products are symmetric to {found:.1g} only, by rounding")
            continue
        if not kernels.plain:
            kernels.plain = True
            again = _tried(piece, probe)
            if not isinstance(again, str) and again <= tolerance:
                notes.append(
                    "layers are evaluated by torch's own operations only: symmetric products"
                )
                continue
        notes.append(
            f"products with torch's second derivative are symmetric to {found:.1g} only; whether by rounding "
            "cannot be told"
            if rounding is None
            else "torch's second derivative of this network is wrong: products with it are not symmetric"
        )
        return False, notes
    return True, notes


def _pieces(batch: Batch) -> Iterator[Batch]:
    """Some of the smallest pieces of a batch, from all over it."""
    if not batch.splittable or batch.size <= PROBE:
        yield batch
        return
    step = max(PROBE, batch.size // _PIECES)
    for first in range(0, batch.size, step):
        yield batch.take(range(first, min(first + PROBE, batch.size)))


def _tried(piece: Batch, probe: Callable[[Batch], str | float]) -> str | float:
    """What a probe finds; an error that says that a derivative is missing is what it says."""
    try:
        return probe(piece)
    except RuntimeError as error:
        if not lacks_derivative(error):
            raise
        return str(error)


def _culprit(reason: str) -> str:
    """The operation that an error of torch names.

    >>> _culprit("derivative for aten::_embedding_bag_dense_backward is not implemented")
    "torch's _embedding_bag"
    """
    named = re.search(r"aten::(\w+?)(_dense)?(_backward)?\b", reason)
    return f"torch's {named.group(1)}" if named else "an operation"


def _distinct(batches: Sequence[Batch]) -> Sequence[Batch]:
    # An arbitrary objective may treat batches differently; a named loss does not.
    return batches[:1] if all(batch.splittable for batch in batches) else batches[:4]


def asymmetry(product: Callable[[Tensor], Tensor], like_N: Tensor, ranks: Ranks = ALONE) -> float:
    """|uᵀHv − vᵀHu| relative to ‖Hu‖ and ‖Hv‖, for Gaussian u and v.

    >>> a = torch.tensor([[2.0, 1.0], [1.0, 0.0]])
    >>> asymmetry(lambda v: a @ v, torch.zeros(2)) < 1e-6
    True
    """
    generator = torch.Generator().manual_seed(ranks.rank if ranks.parted else 0)
    u_N, v_N = (torch.randn(len(like_N), generator=generator).to(like_N) for _ in range(2))
    of_u_N, of_v_N = product(u_N), product(v_N)
    scale = max(float(ranks.norm(of_u_N)), float(ranks.norm(of_v_N)))
    difference = abs(float(ranks.dot(u_N, of_v_N)) - float(ranks.dot(v_N, of_u_N)))
    return difference / scale if math.isfinite(difference) and scale > 0 else 0.0


def gone_in_float64(found: float, loss: float) -> bool | None:
    """Whether an asymmetry found in float64 is rounding.

    Of a loss ℓ of probabilities that has almost vanished the curvature is p (1 − p), where 1 − p ≤ ℓ is off by eps.

    Returns:
        None where even float64 has nothing but rounding.

    >>> gone_in_float64(1e-9, 0.1), gone_in_float64(1e-3, 1e-14), gone_in_float64(0.1, 0.1)
    (True, True, False)
    """
    rounding = torch.finfo(torch.float64).eps / abs(loss) if loss else math.inf
    if found <= min(max(ASYMMETRY[True], rounding), ASYMMETRY[False]):
        return True
    return None if rounding > ASYMMETRY[False] else False


def twin_of(operator: C, piece: Batch) -> C | None:
    """The same matrix of a piece alone, in float64, on a copy of the model; None where that cannot be made."""
    model, batch = operator.objective.model, piece
    try:
        if operator.dtype != torch.float64:
            model, batch = in_double(model, piece, operator.device)
        wide = copy.copy(operator)
        wide.objective = operator.objective.twin(model, [batch])
    except (CurvError, RuntimeError, TypeError, AttributeError, ValueError) as error:
        not_of_memory(error)
        return None
    wide.dtype, wide.device = torch.float64, wide.objective.device
    return wide
