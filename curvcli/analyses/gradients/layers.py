"""From what one backward pass measured to the answer of `curvcli gradients`: layers and noise."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from curvcli.analyses.gradients.result import LayerSignal, Noise, Quantiles, Role
from curvcli.linalg.statistics.gradient_noise import Estimate, NoiseEstimate, noise_estimates
from curvcli.objective.objective import Objective
from curvcli.operators.signals.depth_trend import gradient_norm
from curvcli.operators.signals.gradient_flow import Flow
from curvcli.operators.signals.layers import weight_matrices
from curvcli.operators.signals.records import Signal
from curvcli.operators.signals.reductions import Reduction, square_sums


def layer_signals(objective: Objective, flow: Flow) -> list[LayerSignal]:
    """A row for every layer, and for every block whose output on the trunk is a tensor of its own."""
    shown = [s for s in flow.recorder.signals.values() if s.leaf or s.on_trunk]
    sources = [s.same_as or s for s in shown]
    weights = _Weights(objective, flow)
    samples = objective.samples
    activations = quantiles([s.activation for s in sources], 1.0)
    gradients = quantiles([s.gradient for s in sources], samples)
    noises = weights.noises([s.module if s.leaf else None for s in shown])
    return [
        _layer(signal, samples, weights, activation, gradient, noise)
        for signal, activation, gradient, noise in zip(
            shown, activations, gradients, noises, strict=True
        )
    ]


def _layer(
    signal: Signal,
    samples: int,
    weights: "_Weights",
    activation_samples: Quantiles | None,
    gradient_samples: Quantiles | None,
    noise: NoiseEstimate | None,
) -> LayerSignal:

    source = signal.same_as or signal
    activation, gradient, counts = source.activation, source.gradient, signal.counts
    role: Role = "sum" if not signal.leaf else "trunk" if source.on_trunk else "branch"
    role = role if gradient.reached else "unreached"
    weight, slope = weights.of(signal.module) if signal.leaf else (None, None)
    rms = finite(gradient.rms)
    gains = [float(g) for g in signal.norm_gains]
    return LayerSignal(
        name=signal.name,
        kind=signal.kind,
        role=role,
        depth=signal.depth,
        activation_rms=finite(activation.rms),
        activation_samples=activation_samples,
        activation_gradient_rms=None if rms is None else rms * samples,
        activation_gradient_samples=gradient_samples,
        activation_gradient_norm=0.0 if rms == 0 else gradient_norm(source, samples),
        activation_gradient_peak=finite(_times(gradient.peak, samples)),
        weight_rms=weight,
        weight_gradient_rms=slope,
        gradient_to_weight=finite(slope / weight) if slope is not None and weight else None,
        weight_scale=weights.scale_of(signal.module),
        zero_fraction=activation.zero_fraction,
        dead_fraction=counts.dead_fraction if counts else None,
        units=counts.units if counts else None,
        saturated_fraction=counts.saturated_fraction if counts else None,
        flat_fraction=counts.flat_fraction if counts else None,
        normalised=source.normalised,
        norm_gain=finite(sum(gains) / len(gains)) if gains else None,
        signal_to_noise=finite(noise.signal_to_noise.value) if noise else None,
        signal_to_noise_error=noise.signal_to_noise.standard_error if noise else None,
        nonfinite=activation.nonfinite,
        nonfinite_gradient=gradient.nonfinite,
    )


class _Weights:
    """Weights and their gradients, by module."""

    def __init__(self, objective: Objective, flow: Flow) -> None:

        self._flow = flow
        self._index = {id(p): i for i, p in enumerate(objective.parameters)}
        self._gradient_squares = square_sums(flow.gradient)
        everything = list(objective.model.parameters())
        self._squares = dict(zip(map(id, everything), square_sums(everything), strict=True))

    def of(self, module: nn.Module | None) -> tuple[float | None, float | None]:
        """RMS of the weight matrices (of all parameters where there are none) and of their gradients."""
        if module is None:
            return None, None
        chosen = weight_matrices(module) or list(module.parameters())
        if not chosen:
            return None, None
        entries = sum(p.numel() for p in chosen)
        weight = math.sqrt(sum(self._squares[id(p)] for p in chosen) / entries)
        known = [p for p in chosen if id(p) in self._index]
        if not known:
            return finite(weight), None
        squares = sum(self._gradient_squares[self._index[id(p)]] for p in known)
        return finite(weight), finite(math.sqrt(squares / sum(p.numel() for p in known)))

    def scale_of(self, module: nn.Module | None) -> float | None:
        """√fan_in · standard deviation of the weights of a linear or convolutional layer."""
        if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            return None
        weight: Tensor = module.weight.detach()
        if weight.numel() < 2:
            return None
        fan_in = weight.shape[1] * math.prod(weight.shape[2:])
        return finite(math.sqrt(fan_in) * float(weight.std()))

    def noises(self, modules: list[nn.Module | None]) -> list[NoiseEstimate | None]:
        """Signal to noise of all parameters of each layer."""
        grams = self._flow.gram_TPP
        found: list[NoiseEstimate | None] = [None] * len(modules)
        if grams is None:
            return found
        chosen = [
            [self._index[id(p)] for p in module.parameters() if id(p) in self._index]
            if module is not None
            else []
            for module in modules
        ]
        rows = [i for i, indices in enumerate(chosen) if indices]
        sums = [torch.stack([grams[k] for k in chosen[i]]).sum(0) for i in rows]
        for i, noise in zip(rows, _estimates(sums, self._flow), strict=True):
            found[i] = noise
        return found


def gradient_noise(flow: Flow) -> Noise | None:
    """Signal and noise of the whole gradient; None where the data has only one part."""
    if flow.gram_TPP is None:
        return None
    (found,) = _estimates([torch.stack(flow.gram_TPP).sum(0)], flow)
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


def _estimates(grams_PP: list[Tensor], flow: Flow) -> list[NoiseEstimate | None]:

    if not grams_PP:
        return []
    return noise_estimates(torch.stack(grams_PP).numpy(), np.array(flow.part_samples, np.float64))


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else finite(estimate.value)


def quantiles(reductions: list[Reduction], scale: float) -> list[Quantiles | None]:
    """Over the samples, of each; None where there is no sample axis or a number is not finite."""
    found: list[Quantiles | None] = [None] * len(reductions)
    by_length: dict[int, list[tuple[int, Tensor]]] = {}
    for i, reduction in enumerate(reductions):
        squares_B = reduction.mean_squares_by_sample()
        if squares_B is not None:
            by_length.setdefault(len(squares_B), []).append((i, squares_B))
    for same in by_length.values():
        values_LB = torch.stack([squares_B for _, squares_B in same]).sqrt().cpu()
        levels = torch.tensor([0.1, 0.5, 0.9], dtype=values_LB.dtype)
        # torch.quantile takes so many entries at once.
        size = max(1, (1 << 22) // values_LB.shape[1])
        rows = [torch.quantile(part, levels, dim=1).T for part in values_LB.split(size)]
        for (i, _), row in zip(same, torch.cat(rows).tolist(), strict=True):
            if all(map(math.isfinite, row)):
                found[i] = Quantiles(*(scale * v for v in row))
    return found


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def finite(value: float | None) -> float | None:
    """The value, or None where it is NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None
