"""How a recurrent layer forgets: the norm of ∂h_T/∂h_t over the lag T − t.

Shapes: ``T`` steps, ``B`` samples, ``S`` parts of the state (h, and c of an LSTM), ``H`` units, ``K`` vectors.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from curvcli.operators.recurrent.cells import State
from curvcli.operators.recurrent.steps import Steps, in_dtype
from curvcli.operators.recurrent.time import Recurrence

# Up to so many units the Frobenius norm of a time Jacobian is exact: one product for each unit.
EXACT_UNITS = 64
# Products with Gaussian vectors for wider layers.
PROBES = 16
# Rows (vectors times samples) that are carried through time at once.
_ROWS = 2048
# What float32 vectors are multiplied by, as norms rather fall than grow; and the norms that it then holds with their
# squares, and with what is far smaller beside them.
_LIFT, _RANGE = 2.0**40, (1e-26, 1e6)


class LagNorms(NamedTuple):
    """‖∂h_T/∂h_t‖ over the lag."""

    norms_T: Tensor
    """RMS over samples of ‖∂h_T/∂h_t‖_F / √H for lag 0 … T − 1: 1 at lag 0 for t = T."""
    errors_T: Tensor | None
    """Standard errors from the probes; None: exact."""
    cell_norms_T: Tensor | None
    """The same for ∂h_T/∂c_t of an LSTM."""
    samples: int
    """Samples it is the mean over."""


def lag_norms(
    recurrence: Recurrence,
    seed: int = 0,
    exact_units: int = EXACT_UNITS,
    probes: int = PROBES,
    *,
    samples: int | None = None,
    dtype: torch.dtype | None = None,
) -> LagNorms:
    """‖∂h_T/∂h_t‖_F / √H over the lag T − t, root mean square over samples.

    T is each sample's last step. ∂h_T/∂h_t holds the cell state c_t fixed; ∂h_T/∂c_t is given beside it. Exact by
    one product for each unit up to ``exact_units`` units, else estimated with Gaussian vectors:
    E‖Jᵀu‖² = ‖J‖_F².

    Args:
        recurrence: from `unroll`.
        seed: of the vectors.
        exact_units: widest layer that is done exactly.
        probes: vectors for wider ones.
        samples: at most so many, the first ones.
        dtype: wider than that of the recurrence, whose products are precise enough as long as nothing comes near
            the ends of its range: else they are repeated in this one.
    """
    units = recurrence.units
    exact = units <= exact_units
    device, kind = recurrence.inputs_TBI.device, recurrence.inputs_TBI.dtype
    wide, each = dtype or kind, recurrence.each
    if exact:
        vectors_KH = torch.eye(units, dtype=wide, device=device) * units**0.5
    else:
        generator = torch.Generator().manual_seed(seed)
        drawn_KH = torch.randn(probes, units, generator=generator, dtype=torch.float64)
        vectors_KH = drawn_KH.to(device=device, dtype=wide)
    most = recurrence.initial[0].shape[0] if samples is None else samples
    most = min(most, max(1, _ROWS // len(vectors_KH)))
    if wide != kind:
        lifted_KH = (_LIFT * vectors_KH).to(kind)
        found = _lag_norms(recurrence, each, lifted_KH, most, exact, wide, _LIFT)
        limits = found.norms_T.aminmax()
        if _RANGE[0] < float(limits.min) <= float(limits.max) < _RANGE[1]:
            return found
        each = in_dtype(each, wide)
    return _lag_norms(recurrence, each, vectors_KH, most, exact, wide)


def _lag_norms(
    recurrence: Recurrence,
    each: Steps,
    vectors_KH: Tensor,
    samples: int,
    exact: bool,
    wide: torch.dtype,
    lift: float = 1.0,
) -> LagNorms:
    k, units = vectors_KH.shape
    dtype, device = vectors_KH.dtype, vectors_KH.device
    last_B = recurrence.last_step()[:samples]
    width = len(recurrence.initial)
    norms_TSBK = torch.empty(recurrence.steps, width, samples, k, dtype=dtype, device=device)
    pulled: State = tuple(
        vectors_KH.repeat(samples, 1, 1)
        if part == 0
        else torch.zeros(samples, k, s.shape[-1], dtype=dtype, device=device)
        for part, s in enumerate(recurrence.initial)
    )
    spare: State | None = None
    for step in reversed(range(recurrence.steps)):
        for part, vectors_BKC in enumerate(pulled):
            torch.linalg.vector_norm(vectors_BKC, dim=-1, out=norms_TSBK[step, part])
        if step:
            spare, pulled = pulled, recurrence.pull_back(step, pulled, spare, each)
    valid_TB = recurrence.valid_TB[:, :samples]
    steps_T1 = torch.arange(recurrence.steps, device=device)[:, None]
    lag_TB = torch.where(valid_TB, last_B - steps_T1, 0)
    weight_TB = valid_TB.to(wide)
    counts_T = torch.zeros(recurrence.steps, dtype=wide, device=device)
    counts_T.index_add_(0, lag_TB.flatten(), weight_TB.flatten())
    squares_TBSK = (
        (norms_TSBK.to(wide) / lift)
        .square_()
        .mul_(weight_TB[:, None, :, None] / units)
        .transpose(1, 2)
    )
    by_lag_TSK = torch.zeros(recurrence.steps, width, k, dtype=wide, device=device)
    by_lag_TSK.index_add_(0, lag_TB.flatten(), squares_TBSK.flatten(0, 1))
    by_lag_TSK /= counts_T[:, None, None]
    mean_TS = by_lag_TSK.mean(2)
    errors_T = None
    if not exact:
        # √ of a mean of squares: the error of the square over twice the root.
        spread_T = by_lag_TSK[:, 0].std(1) / k**0.5
        errors_T = spread_T / (2 * mean_TS[:, 0].sqrt().clamp_min(torch.finfo(wide).tiny))
    roots_TS = mean_TS.sqrt()
    return LagNorms(roots_TS[:, 0], errors_T, roots_TS[:, 1] if width == 2 else None, samples)
