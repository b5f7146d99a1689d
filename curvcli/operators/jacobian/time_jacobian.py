"""How recurrent layers carry their state through time: ∂s_T/∂s_t over the lag, and Lyapunov exponents.

The state s is h, for an LSTM h and c side by side. Layers are unrolled with their own weights
(`operators.recurrent_time`) on what the network feeds them, in float64 where the device has it.

Shapes: ``T`` steps, ``B`` samples, ``D`` length of the state, ``K`` vectors.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.errors import MemoryLimitError
from curvcli.linalg.lyapunov import Lyapunov, lyapunov
from curvcli.machine.device import supports
from curvcli.machine.memory import HELD, Need, human, room
from curvcli.machine.meter import MemoryMeter
from curvcli.objective.batch import Batch
from curvcli.operators.jacobian.taps import Passage
from curvcli.operators.recurrent.time import Recurrence, recurrent_modules, time_first, unroll

# States up to this length are followed whole; of longer ones only some directions.
WHOLE = 128
DIRECTIONS = 8
# What pushing forward may hold, relative to pulling back.
_PUSHED = 3
# Lags at which norms are measured, evenly spread on a logarithmic scale.
LAGS = 24


@dataclass(frozen=True)
class TimeReport:
    """One layer in one direction."""

    name: str
    kind: str
    state: str
    steps: int
    lags: list[int]
    spectral: list[float] | None
    """‖∂s_T/∂s_{T−lag}‖₂, mean over samples; None where the state is too long to be followed whole."""
    frobenius: list[float]
    lyapunov: Lyapunov
    unroll_error: float
    """Difference of the unrolled layer to the network's own, relative."""


def time_jacobians(passage: Passage, batch: Batch, seed: int = 0) -> list[TimeReport]:
    """Every recurrent layer that is called, on what it is given in one run of the network."""
    return [_report(*found, seed) for found in _recurrences(passage, batch)]


def _recurrences(passage: Passage, batch: Batch) -> list[tuple[str, str, Recurrence, float]]:
    """Name, kind, the layer unrolled in one direction, and by how much its output differs."""
    calls: dict[str, tuple[nn.RNNBase, Any, Any, Any]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            assert isinstance(module, nn.RNNBase)
            inputs = args[0] if args else kwargs["input"]
            hx = args[1] if len(args) > 1 else kwargs.get("hx")
            calls.setdefault(name, (module, inputs, hx, output[0]))

        return hook

    handles = [
        module.register_forward_hook(watch(name), with_kwargs=True)
        for name, module in recurrent_modules(passage.model)
    ]
    if not handles:
        return []
    try:
        passage.run(batch)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for name, (module, inputs, hx, output) in calls.items():
        device = next(module.parameters()).device
        dtype = torch.float64 if supports(device, torch.float64) else torch.float32
        unrolled = unroll(module, inputs, hx, dtype=dtype)
        error = unrolled.error(time_first(module, output).x_TBI)
        for recurrence in unrolled.recurrences:
            label = f"{name} {recurrence.name}" if len(unrolled.recurrences) > 1 else name
            found.append((label, type(module).__name__, recurrence, error))
    return found


def samples_that_fit(passage: Passage, batch: Batch, limit: int | None) -> int:
    """Samples of the batch that can be followed through time within the process' limit.

    Measured on one sample, and only where there is a limit: it takes as many steps as all of them.

    Raises:
        MemoryLimitError: not even one sample fits.
    """
    layers = list(recurrent_modules(passage.model))
    if limit is None or not layers or not batch.splittable:
        return batch.size
    whole = True
    with MemoryMeter() as meter:
        for name, kind, recurrence, error in _recurrences(passage, batch.take([0])):
            d = sum(part.shape[-1] for part in recurrence.initial)
            if d <= WHOLE:
                _report(name, kind, recurrence, error, 0)
            else:
                whole = False
                _norms(recurrence, set(_lags(recurrence.steps)), whole, d, 0)
    device = next(layers[0][1].parameters()).device
    # Pushing a few vectors of a long state forward cannot be measured: it repeats state and tangents for each.
    need = Need(0.0, HELD * meter.peak * (1 if whole else _PUSHED))
    available = room(device, limit)
    if need.of(1) > available:
        raise MemoryLimitError(
            f"{human(available)} are available; the time Jacobian of one sample needs {human(need.of(1))}",
            "raise --memory, or pass --no-time",
        )
    return min(batch.size, need.samples_within(available))


def _report(name: str, kind: str, recurrence: Recurrence, error: float, seed: int) -> TimeReport:
    d = sum(part.shape[-1] for part in recurrence.initial)
    whole = d <= WHOLE
    lags = _lags(recurrence.steps)
    spectral, frobenius = _norms(recurrence, set(lags), whole, d, seed)
    k = d if whole else DIRECTIONS
    generator = torch.Generator().manual_seed(seed)
    b = recurrence.initial[0].shape[0]
    start_BDK = torch.randn(b, d, k, generator=generator, dtype=torch.float64)
    dtype, device = recurrence.initial[0].dtype, recurrence.initial[0].device
    return TimeReport(
        name=name,
        kind=kind,
        state="h" if len(recurrence.initial) == 1 else "h and c",
        steps=recurrence.steps,
        lags=lags,
        spectral=[spectral[lag] for lag in lags] if whole else None,
        frobenius=[frobenius[lag] for lag in lags],
        lyapunov=lyapunov(_pushes(recurrence), recurrence.steps, start_BDK.to(device, dtype)),
        unroll_error=error,
    )


def _lags(steps: int) -> list[int]:
    spread = torch.logspace(0, torch.tensor(float(steps)).log10().item(), LAGS).round().int()
    return sorted({0, *(min(steps, lag) for lag in spread.tolist())})


def _norms(
    recurrence: Recurrence, lags: set[int], whole: bool, d: int, seed: int
) -> tuple[dict[int, float], dict[int, float]]:
    """‖∂s_T/∂s_{T−lag}‖: spectral (where whole) and Frobenius, mean over samples, by lag.

    Rows of the matrix are pulled back step by step from each sample's last step; of a long state, Gaussian
    combinations of rows, E‖Jᵀu‖² = ‖J‖_F².
    """
    b = recurrence.initial[0].shape[0]
    dtype, device = recurrence.initial[0].dtype, recurrence.initial[0].device
    if whole:
        rows_KD = torch.eye(d, dtype=dtype, device=device)
    else:
        generator = torch.Generator().manual_seed(seed)
        drawn_KD = torch.randn(DIRECTIONS, d, generator=generator, dtype=torch.float64)
        rows_KD = (drawn_KD / DIRECTIONS**0.5).to(device, dtype)
    rows_BKD = rows_KD.expand(b, -1, -1)
    last_B = recurrence.last_step()
    spectral: dict[int, list[float]] = {lag: [] for lag in lags}
    frobenius: dict[int, list[float]] = {lag: [] for lag in lags}

    def note(lag_B: Tensor, counted_B: Tensor) -> None:
        wanted_B = counted_B.cpu() & torch.tensor([int(lag) in lags for lag in lag_B.tolist()])
        if not bool(wanted_B.any()):
            return
        chosen = rows_BKD[wanted_B.to(device)]
        norms = torch.linalg.matrix_norm(chosen).tolist()
        leading = torch.linalg.svdvals(chosen)[:, 0].tolist() if whole else norms
        for lag, norm, largest in zip(lag_B.cpu()[wanted_B].tolist(), norms, leading, strict=True):
            frobenius[lag].append(norm)
            spectral[lag].append(largest)

    note(torch.zeros_like(last_B), last_B >= 0)
    for step in reversed(range(recurrence.steps)):
        valid_B = recurrence.valid_TB[step]
        rows_BKD = _pull_back(recurrence, step, rows_BKD)
        note(last_B - step + 1, valid_B)
    mean = {lag: sum(v) / len(v) if v else float("nan") for lag, v in spectral.items()}
    return mean, {lag: sum(v) / len(v) if v else float("nan") for lag, v in frobenius.items()}


def _pull_back(recurrence: Recurrence, step: int, rows_BKD: Tensor) -> Tensor:
    """Rows times ∂s_step/∂s_{step−1}; as they are where a sample does not take the step."""
    widths = [part.shape[-1] for part in recurrence.initial]
    return torch.cat(recurrence.pull_back(step, rows_BKD.split(widths, 2)), 2)


def _pushes(recurrence: Recurrence) -> Iterator[tuple[Callable[[Tensor], Tensor], Tensor]]:
    """For each step the map of K vectors Z ↦ ∂s_step/∂s_{step−1} Z.

    By the matrix itself where the state is short, else by forward differentiation.
    """
    d = sum(part.shape[-1] for part in recurrence.initial)
    if d <= WHOLE:
        first = recurrence.initial[0]
        rows_BDD = torch.eye(d, dtype=first.dtype, device=first.device).expand(len(first), -1, -1)
        for step in range(recurrence.steps):
            j_BDD = _pull_back(recurrence, step, rows_BDD)
            yield partial(torch.matmul, j_BDD), recurrence.valid_TB[step]
        return
    for step in range(recurrence.steps):
        state = recurrence.before(step)
        widths = [part.shape[-1] for part in state]

        def push(
            z_BDK: Tensor,
            step: int = step,
            state: tuple[Tensor, ...] = state,
            widths: list[int] = widths,
        ) -> Tensor:
            b, _, k = z_BDK.shape
            x = recurrence.inputs_TBI[step].repeat_interleave(k, 0)
            tangents = tuple(
                part.transpose(1, 2).reshape(b * k, -1) for part in z_BDK.split(widths, 1)
            )
            repeated = tuple(s.repeat_interleave(k, 0) for s in state)
            after = torch.func.jvp(lambda *s: recurrence.cell(x, s)[0], repeated, tangents)[1]
            return torch.cat([part.view(b, k, -1) for part in after], 2).transpose(1, 2)

        yield push, recurrence.valid_TB[step]
