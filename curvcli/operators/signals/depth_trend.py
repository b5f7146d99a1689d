"""The gain of the gradient per layer, fitted along the trunk of the network."""

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

from curvcli.linalg.statistics.trend import Trend, theil_sen
from curvcli.operators.signals.layers import weight_matrices
from curvcli.operators.signals.records import Signal

# A stretch without a point that is longer than this share of the depth is not spoken for by the rest.
_GAP = 0.75


class DepthTrend(NamedTuple):
    """log10 of norms against depth.

    The norm ‖∂ℓ/∂h‖ of one sample, not the RMS over its entries: only the norm is kept by a layer of unit gain whose
    width changes (an RMS would call every pyramid of widths an explosion).
    """

    points: list[Signal]
    gradient: Trend | None
    activation: Trend | None
    span: int
    """Layers between the first and the last point."""

    def gain(self, layers: int) -> tuple[float, tuple[float, float] | None] | None:
        """Factor of ‖∂ℓ/∂h‖ over so many layers back towards the input, and its interval."""
        if self.gradient is None:
            return None
        interval = self.gradient.interval
        return power(-self.gradient.slope * layers), interval and (
            power(-interval[1] * layers),
            power(-interval[0] * layers),
        )


def depth_trend(signals: Iterable[Signal], samples: int) -> DepthTrend:
    """Fit the first tensor of the trunk at each depth: where there are fewer than three, every weight layer.

    In a chain of layers these are the outputs of the weight layers, before their activation function:
    the slope is then −½ log10 χ of mean-field theory (Schoenholz et al., ICLR 2017).
    """
    listed = [s for s in signals if gradient_norm(s, samples)]
    points: dict[int, Signal] = {}
    for signal in listed:
        if signal.on_trunk and signal.depth:
            points.setdefault(signal.depth, signal)
    if len(points) < 3 or _unseen(points):
        layers = [s for s in listed if s.leaf and s.module is not None]
        every = {s.depth: s for s in layers if s.module and weight_matrices(s.module)}
        points = every if len(every) > len(points) else points
    chosen = list(points.values())
    depths = [float(s.depth) for s in chosen]
    gradients = [math.log10(gradient_norm(s, samples) or math.nan) for s in chosen]
    activations = [_log(_norm(s.activation.rms, s.activation.entries, samples)) for s in chosen]
    span = int(max(depths) - min(depths)) if depths else 0
    return DepthTrend(chosen, theil_sen(depths, gradients), theil_sen(depths, activations), span)


def _unseen(depths: Iterable[int]) -> bool:
    """Whether most of the depth lies between two neighbouring points, whose slopes elsewhere say nothing of it.

    >>> _unseen([1, 2, 3, 4, 33]), _unseen([1, 2, 4])
    (True, False)
    """
    ordered = sorted(depths)
    gaps = [b - a for a, b in itertools.pairwise(ordered)]
    return max(gaps) > _GAP * (ordered[-1] - ordered[0])


def gradient_norm(signal: Signal, samples: int) -> float | None:
    """‖∂ℓ/∂h‖, root mean square over the samples; None where it is zero, not finite or not reached."""
    signal = signal.same_as or signal
    norm = _norm(signal.gradient.rms, signal.gradient.entries, samples)
    return norm * samples if norm and math.isfinite(norm) else None


def power(exponent: float) -> float:
    """10 to the ``exponent``, infinite where that overflows."""
    return 10.0**exponent if exponent < 308 else math.inf


def _norm(rms: float | None, entries: int, samples: int) -> float | None:
    return None if rms is None else rms * math.sqrt(entries / max(1, samples))


def _log(value: float | None) -> float:
    return math.log10(value) if value and math.isfinite(value) else math.nan
