"""Derivatives that are not numbers: of which sample, and by which operation."""

import re
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from curvcli.errors import NonFiniteError
from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.machine.memory import not_of_memory
from curvcli.objective.batch import Batch
from curvcli.objective.faults import fault_in_data

# So many samples are looked at one by one.
_LOOKED_AT = 512
# What torch says of an operation, and how it calls its node.
_RETURNED = re.compile(r"Function '(\w+?)(?:Backward)*\d*' returned nan")


def check_finite(
    derivative_N: Tensor,
    what: str,
    batches: Sequence[Batch],
    attempt: Callable[[Batch], Tensor],
    ranks: Ranks = ALONE,
) -> None:
    """A derivative holds no NaN and no Inf.

    Args:
        derivative_N: of the loss of all batches.
        what: it is called.
        batches: what it was computed of.
        attempt: the same of one piece.
        ranks: the processes that hold the vectors.

    Raises:
        NonFiniteError: it does; names the input that does too, or the sample and the operation.
    """
    if ranks.all_finite(derivative_N):
        return
    found = f"{what} contains NaN or Inf although the loss is finite"
    if (fault := fault_in_data(batches)) is not None:
        raise NonFiniteError(f"{found}: in the data, {fault}", "clean the data")
    # Processes that hold parts of a vector each would look in different places.
    number, piece = (None, None) if ranks.parted else _first(batches, attempt)
    sample = "" if number is None else f" at sample {number}"
    operation = _operation(piece, attempt) if piece is not None else None
    if operation is not None:
        raise NonFiniteError(
            f"{found}: on the way back NaN first comes out of {operation}{sample}, behind a norm, square root, "
            "logarithm or quotient at zero, where the derivative does not exist",
            "keep away from zero: torch.sqrt(x.square().sum() + 1e-12) in place of x.norm(), log(x + 1e-12)",
        )
    where = f", first{sample}" if sample else ""
    finer = "" if derivative_N.dtype == torch.float64 else " (try --dtype float64)"
    raise NonFiniteError(
        found + where,
        f"derivatives overflow{finer}, or do not exist here: a norm, square root or quotient at zero",
    )


def _first(
    batches: Sequence[Batch], attempt: Callable[[Batch], Tensor]
) -> tuple[int | None, Batch | None]:
    """Number of the first sample whose derivative is not finite, and that sample; a batch that cannot be cut."""
    seen = 0
    for batch in batches:
        for piece in batch.pieces(1):
            if seen >= _LOOKED_AT:
                return None, None
            if not bool(torch.isfinite(attempt(piece)).all()):
                return (seen if batch.splittable else None), piece
            seen += piece.size
    return None, None


def _operation(piece: Batch, attempt: Callable[[Batch], Tensor]) -> str | None:
    """Torch's name of the first operation on the way back that gives NaN."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.autograd.detect_anomaly(check_nan=True):
                attempt(piece)
    except RuntimeError as error:
        not_of_memory(error)
        named = _RETURNED.search(str(error))
        return named[1] if named else None
    return None
