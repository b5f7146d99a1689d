"""Which kernels a network needs so that products exist: found by a product on a few samples."""

from collections.abc import Callable, Sequence

from curvcli.objective.batch import Batch
from curvcli.operators.autodiff.kernels import Kernels, lacks_derivative

# Samples of the smallest piece on which a derivative is tried.
PROBE = 2


def find_kernels(
    kernels: Kernels,
    batches: Sequence[Batch],
    attempt: Callable[[Batch], str | None],
    asymmetry: Callable[[Batch], float],
    tolerance: float,
) -> tuple[bool, list[str]]:
    """Switch kernels until ``attempt`` works on a piece of each batch that may differ from the others.

    Args:
        kernels: are switched.
        batches: of the objective.
        attempt: a product on a piece; names of operations without a derivative, or None.
        asymmetry: of the matrix of a piece, relative.
        tolerance: beyond this it is no rounding: a derivative is wrong.

    Returns:
        Whether it works now, and notes on what was switched.
    """
    notes: list[str] = []
    for batch in _distinct(batches):
        piece = next(iter(batch.pieces(PROBE)))
        while (reason := _obstacle(piece, attempt)) is not None:
            note = kernels.switch_for(reason)
            if note is None:
                return False, notes
            notes.append(note)
        if asymmetry(piece) <= tolerance:
            continue
        if not kernels.plain:
            kernels.plain = True
            if attempt(piece) is None and asymmetry(piece) <= tolerance:
                notes.append(
                    "layers are evaluated by torch's own operations only: symmetric products"
                )
                continue
        notes.append(
            "torch's second derivative of this network is wrong: products with it are not symmetric"
        )
        return False, notes
    return True, notes


def _obstacle(piece: Batch, attempt: Callable[[Batch], str | None]) -> str | None:
    """Why this piece cannot be differentiated twice, or None."""
    try:
        return attempt(piece)
    except RuntimeError as error:
        if not lacks_derivative(error):
            raise
        return str(error)


def _distinct(batches: Sequence[Batch]) -> Sequence[Batch]:
    # An arbitrary objective may treat batches differently; a named loss does not.
    return batches[:1] if all(batch.splittable for batch in batches) else batches[:4]
