"""From what was measured along sequences to the answer of `curvcli gradients`: time and attention."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from msgspec.structs import replace
from torch import Tensor

from curvcli.analyses.gradients.layers import finite
from curvcli.analyses.gradients.result import Gate, Head, TimeTrend
from curvcli.linalg.statistics.trend import theil_sen
from curvcli.operators.recurrent.cells import is_recurrent_cell
from curvcli.operators.recurrent.lag import LagNorms
from curvcli.operators.signals.depth_trend import gradient_norm, power
from curvcli.operators.signals.records import Signal
from curvcli.operators.signals.signals import Recorder
from curvcli.operators.signals.time_signals import (
    GateStatistics,
    TimeSignal,
    loop_signals,
    time_signals,
)

# An unrolled layer further than this from its own output was not unrolled as the layer works.
OUTPUT_LIMIT = 1e-3


def time_trends(recorder: Recorder, samples: int, seed: int, notes: list[str]) -> list[TimeTrend]:
    """Recurrent layers unrolled, cells called in a loop, and positions of a sequence."""
    found = []
    for signal in time_signals(recorder.recurrent, seed):
        if signal.output_error <= OUTPUT_LIMIT:
            found.append(_unrolled(signal, samples))
        elif math.isfinite(signal.output_error):
            notes.append(
                f"{signal.name} is left out: unrolled it differs from its own output by "
                f"{signal.output_error:.1e}"
            )
    signals = list(recorder.signals.values())
    return [
        *found,
        *_cells(recorder, signals, samples, seed),
        *_positions(recorder, signals, samples),
    ]


def _unrolled(signal: TimeSignal, samples: int) -> TimeTrend:
    gain = _gain(signal.gradient_T)
    return TimeTrend(
        name=signal.name,
        kind=signal.kind,
        steps=len(signal.gradient_T),
        gradient=_scaled(signal.gradient_T, samples),
        gradient_gain=gain.whole,
        gain_per_step=gain.per_step,
        gain_per_step_interval=gain.interval,
        output_error=signal.output_error,
        samples=signal.samples,
        **_memory(signal.lag, signal.gates),
    )


def _memory(lag: LagNorms, gates: dict[str, GateStatistics]) -> dict[str, Any]:
    """What an unrolled recurrence tells: fields of a `TimeTrend`."""
    norms = lag.norms_T.cpu().tolist()
    fit = theil_sen(range(len(norms)), [_log(v) for v in norms])
    decay = power(fit.slope) if fit else None
    interval = fit.interval if fit else None
    return {
        "lag": _listed(lag.norms_T),
        "lag_error": _listed(lag.errors_T),
        "cell_lag": _listed(lag.cell_norms_T),
        "decay": decay,
        "decay_interval": interval and (power(interval[0]), power(interval[1])),
        "memory_horizon": -1 / math.log(decay) if decay is not None and 0 < decay < 1 else None,
        "gates": {n: Gate(g.mean, g.saturated_fraction) for n, g in gates.items()},
    }


def _cells(
    recorder: Recorder, signals: Sequence[Signal], samples: int, seed: int
) -> list[TimeTrend]:
    """nn.LSTMCell and its like: their calls are the steps."""
    calls: dict[str, list[Signal]] = {}
    for signal in signals:
        if signal.leaf and is_recurrent_cell(signal.module):
            calls.setdefault(signal.name.partition("#")[0], []).append(signal)
    loops = loop_signals(recorder.loops, seed)
    found = []
    for name, same in calls.items():
        if len(same) < 2:
            continue
        norms = [gradient_norm(s, samples) or 0.0 for s in same]
        trend = _plain(name, same[0].kind, norms, samples)
        loop = loops.get(name)
        if loop is not None and loop.output_error <= OUTPUT_LIMIT:
            trend = replace(trend, output_error=loop.output_error, **_memory(loop.lag, loop.gates))
        found.append(trend)
    return found


def _positions(recorder: Recorder, signals: Sequence[Signal], samples: int) -> list[TimeTrend]:
    """The gradient by position of the sequence, at its first tensor on the trunk."""
    if recorder.recurrent:
        return []
    for signal in signals:
        by_position = signal.gradient.rms_by_position() if signal.on_trunk else None
        if by_position is not None and len(by_position) > 1:
            # Per position: RMS over its units, scaled to the norm.
            units = signal.gradient.entries / (samples * len(by_position))
            norms = [samples * math.sqrt(units) * v for v in by_position]
            return [_plain(signal.name, "positions", norms, samples)]
    return []


def _plain(name: str, kind: str, norms: list[float], samples: int) -> TimeTrend:
    gain = _gain(norms)
    return TimeTrend(
        name=name,
        kind=kind,
        steps=len(norms),
        gradient=_scaled(norms, 1),
        gradient_gain=gain.whole,
        gain_per_step=gain.per_step,
        gain_per_step_interval=gain.interval,
        lag=[],
        lag_error=[],
        cell_lag=[],
        decay=None,
        decay_interval=None,
        memory_horizon=None,
        gates={},
        output_error=None,
        samples=samples,
    )


def attention_heads(recorder: Recorder) -> list[Head]:
    """Entropy by head, the mean over the pieces of the data."""
    found = []
    for call in recorder.attention.values():
        entropies_PH = torch.stack(call.entropies)
        weight_P1 = torch.tensor(call.samples, device=entropies_PH.device)[:, None]
        known = ~entropies_PH.isnan()
        sums_H = torch.where(known, weight_P1 * entropies_PH, 0.0).sum(0)
        found.append(Head(call.name, call.fused, _listed(sums_H / (weight_P1 * known).sum(0))))
    return found


class _Gain(NamedTuple):
    """Fit of log10 ‖∂ℓ/∂h_t‖ against t: the first step over the last one, and one step further back."""

    whole: float | None = None
    per_step: float | None = None
    interval: tuple[float, float] | None = None


def _gain(norms: Sequence[float]) -> _Gain:

    fit = theil_sen(range(len(norms)), [_log(v) for v in norms])
    if fit is None:
        return _Gain()
    between = fit.interval and (power(-fit.interval[1]), power(-fit.interval[0]))
    return _Gain(finite(power(-fit.slope * (len(norms) - 1))), finite(power(-fit.slope)), between)


def _scaled(values: Sequence[float], factor: float) -> list[float | None]:
    return [finite(v * factor) for v in values]


def _listed(values: Tensor | None) -> list[float | None]:
    return [] if values is None else [finite(v) for v in values.cpu().tolist()]


def _log(value: float) -> float:
    return math.log10(value) if value > 0 and math.isfinite(value) else math.nan
