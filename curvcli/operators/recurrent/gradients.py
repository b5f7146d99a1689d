"""The gradient of a loss with respect to the states of a recurrent module, passed on from step to step.

Shapes: ``T`` steps, ``B`` samples, ``I`` inputs, ``H`` units (of h), ``C`` units of the cell state.
"""

import torch
from torch import Tensor

from curvcli.operators.recurrent.cells import State
from curvcli.operators.recurrent.steps import Steps, in_dtype
from curvcli.operators.recurrent.time import Recurrence, Unrolled


def gradients_of_states(
    unrolled: Unrolled,
    output_TBH: Tensor | None,
    final: tuple[Tensor | None, ...],
    dtype: torch.dtype | None = None,
) -> tuple[list[Tensor], State]:
    """∂L/∂h_t of every recurrence, shape (T, B, H), and ∂L/∂(h_0, c_0), from ∂L/∂output and ∂L/∂(h_n, c_n).

    These are total derivatives: through all later steps and layers. Steps as the recurrence takes them.

    Args:
        unrolled: the module.
        output_TBH: ∂L/∂output; None: zero.
        final: ∂L/∂h_n and, for an LSTM, ∂L/∂c_n; None: zero.
        dtype: of the gradients; that of the states by default. Decays over hundreds of steps need float64.
    """
    recurrences = unrolled.recurrences
    dtype = dtype or unrolled.output_TBH.dtype
    found: list[Tensor] = [unrolled.output_TBH] * len(recurrences)
    starts: list[State] = [()] * len(recurrences)
    directions = 2 if recurrences[-1].reverse else 1
    into_TBH = output_TBH
    for first in reversed(range(0, len(recurrences), directions)):
        layer = range(first, first + directions)
        parts: list[Tensor | None] = [None] * directions
        if into_TBH is not None:
            parts = list(into_TBH.to(dtype).chunk(directions, -1))
        into_TBH = None
        for index, part_TBH in zip(layer, parts, strict=True):
            recurrence = recurrences[index]
            each = in_dtype(recurrence.each, dtype)
            vectors = _along(
                recurrence, each, part_TBH, dtype, [None if f is None else f[index] for f in final]
            )
            found[index] = vectors[0]
            starts[index] = recurrence.pull_back(
                0, tuple(v[0, :, None] for v in vectors), each=each
            )
            if first:
                back_TBI = each.to_inputs(vectors)
                if not recurrence.whole:
                    back_TBI = torch.where(recurrence.valid_TB[..., None], back_TBI, 0.0)
                back_TBI = back_TBI.flip(0) if recurrence.reverse else back_TBI
                into_TBH = back_TBI if into_TBH is None else into_TBH + back_TBI
    return found, tuple(
        torch.stack([p.squeeze(1) for p in parts]) for parts in zip(*starts, strict=True)
    )


def _along(
    recurrence: Recurrence,
    each: Steps,
    output_TBH: Tensor | None,
    dtype: torch.dtype,
    final: list[Tensor | None],
) -> State:
    """∂L/∂(state after each step), (T, B, units), from what comes in at each step and at the end."""
    if output_TBH is not None:
        if recurrence.reverse:
            output_TBH = output_TBH.flip(0)
        if not recurrence.whole:
            output_TBH = torch.where(recurrence.valid_TB[..., None], output_TBH, 0.0)
    found = tuple(torch.empty_like(s, dtype=dtype) for s in recurrence.states)
    after: State = tuple(
        (torch.zeros_like(s, dtype=dtype) if f is None else f.to(dtype))[:, None]
        for s, f in zip(recurrence.initial, [*final, None], strict=False)
    )
    for step in reversed(range(recurrence.steps)):
        into = tuple(s[step, :, None] for s in found)
        if step + 1 == recurrence.steps:
            for end, given in zip(into, after, strict=True):
                end.copy_(given)
        else:
            recurrence.pull_back(step + 1, after, into, each)
        if output_TBH is not None:
            into[0].add_(output_TBH[step, :, None])
        after = into
    return found
