"""Norms of long vectors, right to rounding, and double precision.

A sum of many float32 squares in one accumulator loses digits: on a CPU `torch.linalg.vector_norm` is off by 6e-5
of itself for 2.7 million entries and by 4e-4 for 11 million. Here pieces are summed first.

Shapes: ``N`` length of a vector, ``K`` vectors.
"""

import torch
from torch import Tensor

# Entries summed in one go: the error of such a sum is a few eps.
_PIECE = 1 << 14
# Norms in between have squares that float32 can hold, to rounding.
_SAFE = (1e-15, 1e18)


def euclidean_norm(v_N: Tensor) -> Tensor:
    """‖v‖, a scalar tensor, of a vector of shape (n,).

    Squares of float32 underflow below 1e-19 and overflow above 1e19; the norm does not:

    >>> euclidean_norm(torch.tensor([3e-22, 4e-22])).item(), euclidean_norm(torch.tensor([3e22, 4e22])).item()
    (5.0000e-22, 5.0000e+22)
    """
    if v_N.dtype == torch.float64 or not len(v_N):
        return _norm(v_N)
    if v_N.device.type == "cpu":
        norm = _norm(v_N)
        if _SAFE[0] < float(norm) < _SAFE[1]:
            return norm
    # On other devices without a look at the norm, for which the host would wait.
    largest = v_N.abs().amax()
    scale = torch.where((largest > _SAFE[0]) & (largest < _SAFE[1]), 1.0, largest)
    return torch.where(largest > 0, scale * _norm(v_N / scale), largest)


def _norm(v_N: Tensor) -> Tensor:
    whole = len(v_N) // _PIECE * _PIECE
    total: Tensor
    if whole <= _PIECE:
        total = torch.linalg.vector_norm(v_N)
    else:
        parts = torch.linalg.vector_norm(v_N[:whole].view(-1, _PIECE), dim=1)
        rest = torch.linalg.vector_norm(v_N[whole:])
        total = torch.linalg.vector_norm(torch.cat([parts, rest[None]]))
    return total


def double(tensor: Tensor) -> Tensor:
    """In float64: where the tensor is, or on the host where its device has no such numbers (MPS)."""
    try:
        return tensor.double()
    except TypeError:
        return tensor.cpu().double()


def euclidean_norms(vectors_KN: Tensor) -> Tensor:
    """‖v‖ of each row, shape (K,)."""
    return torch.stack([euclidean_norm(v_N) for v_N in vectors_KN])
