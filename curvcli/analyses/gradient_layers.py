"""From what one backward pass measured to the answer of `curvcli gradients`: layers and noise."""

import math
from typing import TYPE_CHECKING

from curvcli.analyses.gradient_result import LayerSignal, Noise, Quantiles, Role

if TYPE_CHECKING:
    from torch import Tensor, nn

    from curvcli.linalg.gradient_noise import Estimate, NoiseEstimate
    from curvcli.objective import Objective
    from curvcli.operators.gradient_flow import Flow
    from curvcli.operators.reductions import Reduction
    from curvcli.operators.signal_records import Signal


def layer_signals(objective: "Objective", flow: "Flow") -> list[LayerSignal]:
    """A row for every layer, and for every block whose output on the trunk is a tensor of its own."""
    weights = _Weights(objective, flow)
    return [
        _layer(signal, objective.samples, weights)
        for signal in flow.recorder.signals.values()
        if signal.leaf or signal.on_trunk
    ]


def _layer(signal: "Signal", samples: int, weights: "_Weights") -> LayerSignal:
    from curvcli.operators.depth_trend import gradient_norm

    source = signal.same_as or signal
    activation, gradient, counts = source.activation, source.gradient, signal.counts
    role: Role = "sum" if not signal.leaf else "trunk" if source.on_trunk else "branch"
    role = role if gradient.reached else "unreached"
    weight, slope = weights.of(signal.module) if signal.leaf else (None, None)
    noise = weights.noise_of(signal.module) if signal.leaf else None
    rms = finite(gradient.rms)
    gains = [float(g) for g in signal.norm_gains]
    return LayerSignal(
        name=signal.name,
        kind=signal.kind,
        role=role,
        depth=signal.depth,
        activation_rms=finite(activation.rms),
        activation_samples=_quantiles(activation, 1.0),
        activation_gradient_rms=None if rms is None else rms * samples,
        activation_gradient_samples=_quantiles(gradient, samples),
        activation_gradient_norm=0.0 if rms == 0 else gradient_norm(source, samples),
        activation_gradient_peak=finite(_times(gradient.peak, samples)),
        weight_rms=weight,
        weight_gradient_rms=slope,
        gradient_to_weight=finite(slope / weight) if slope is not None and weight else None,
        weight_scale=weights.scale_of(signal.module),
        zero_fraction=activation.zero_fraction,
        dead_fraction=counts.dead_fraction if counts else None,
        saturated_fraction=counts.saturated_fraction if counts else None,
        flat_fraction=counts.flat_fraction if counts else None,
        norm_gain=finite(sum(gains) / len(gains)) if gains else None,
        signal_to_noise=finite(noise.signal_to_noise.value) if noise else None,
        signal_to_noise_error=noise.signal_to_noise.standard_error if noise else None,
        nonfinite=activation.nonfinite,
        nonfinite_gradient=gradient.nonfinite,
    )


class _Weights:
    """Weights and their gradients, by module."""

    def __init__(self, objective: "Objective", flow: "Flow") -> None:
        from curvcli.operators.reductions import square_sum

        self._flow = flow
        self._index = {id(p): i for i, p in enumerate(objective.parameters)}
        self._gradient_squares = [float(square_sum(g)) for g in flow.gradient]

    def of(self, module: "nn.Module | None") -> tuple[float | None, float | None]:
        """RMS of the weight matrices (of all parameters where there are none) and of their gradients."""
        from curvcli.operators.layers import weight_matrices
        from curvcli.operators.reductions import square_sum

        if module is None:
            return None, None
        chosen = weight_matrices(module) or list(module.parameters())
        if not chosen:
            return None, None
        entries = sum(p.numel() for p in chosen)
        weight = math.sqrt(sum(float(square_sum(p)) for p in chosen) / entries)
        known = [p for p in chosen if id(p) in self._index]
        if not known:
            return finite(weight), None
        squares = sum(self._gradient_squares[self._index[id(p)]] for p in known)
        return finite(weight), finite(math.sqrt(squares / sum(p.numel() for p in known)))

    def scale_of(self, module: "nn.Module | None") -> float | None:
        """√fan_in · standard deviation of the weights of a linear or convolutional layer."""
        from torch import nn

        if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            return None
        weight: Tensor = module.weight.detach()
        if weight.numel() < 2:
            return None
        fan_in = weight.shape[1] * math.prod(weight.shape[2:])
        return finite(math.sqrt(fan_in) * float(weight.double().std()))

    def noise_of(self, module: "nn.Module | None") -> "NoiseEstimate | None":
        """Signal to noise of all parameters of a layer."""
        grams = self._flow.gram_TPP
        if module is None or grams is None:
            return None
        chosen = [grams[self._index[id(p)]] for p in module.parameters() if id(p) in self._index]
        return _estimate(chosen, self._flow)


def gradient_noise(flow: "Flow") -> Noise | None:
    """Signal and noise of the whole gradient; None where the data has only one part."""
    found = _estimate(flow.gram_TPP or [], flow)
    if found is None:
        return None
    square, critical = found.gradient_square, found.critical_batch
    # A gradient within its own noise has no direction: a ratio to it would be a ratio to nothing.
    within = square.value <= 0 or (
        square.standard_error is not None and square.value < 2 * square.standard_error
    )
    return Noise(
        parts=len(flow.part_samples),
        gradient_square=finite(square.value),
        gradient_square_error=square.standard_error,
        trace=finite(found.trace.value),
        trace_error=found.trace.standard_error,
        critical_batch_size=_value(None if within else critical),
        critical_batch_size_error=None if within or critical is None else critical.standard_error,
        signal_to_noise=finite(found.signal_to_noise.value),
        signal_to_noise_error=found.signal_to_noise.standard_error,
    )


def _estimate(grams_TPP: "list[Tensor]", flow: "Flow") -> "NoiseEstimate | None":
    import numpy as np
    import torch

    from curvcli.linalg.gradient_noise import noise_estimate

    if not grams_TPP:
        return None
    gram_PP = torch.stack(grams_TPP).sum(0).numpy()
    return noise_estimate(gram_PP, np.array(flow.part_samples, np.float64))


def _value(estimate: "Estimate | None") -> float | None:
    return None if estimate is None else finite(estimate.value)


def _quantiles(reduction: "Reduction", scale: float) -> Quantiles | None:
    import torch

    values = reduction.rms_by_sample()
    if values is None or not bool(torch.isfinite(values).all()):
        return None
    low, median, high = torch.quantile(
        values, torch.tensor([0.1, 0.5, 0.9], dtype=values.dtype)
    ).tolist()
    return Quantiles(scale * low, scale * median, scale * high)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def finite(value: float | None) -> float | None:
    """The value, or None where it is NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None
