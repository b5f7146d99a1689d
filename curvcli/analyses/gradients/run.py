"""`curvcli gradients`: who vanishes, who explodes, where, and why."""

import math
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from curvcli.analyses.gradients.result import GradientsResult, LayerSignal, Scheme
from curvcli.analyses.gradients.rules import RULES, limits_of
from curvcli.analyses.gradients.verdicts import Judge
from curvcli.analyses.gradients.view import view
from curvcli.analyses.shared.analysis import Analysis
from curvcli.analyses.shared.context import Context, Stage
from curvcli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from curvcli.objective.objective import Objective
    from curvcli.operators.signals.gradient_flow import Flow

_SCHEMES = ("xavier", "kaiming", "orthogonal", "lecun", "default")


def gradients(
    context: Context,
    *,
    worst: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Show only the N layers whose gradient stands out most."),
    ] = None,
    learning_rate: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Also judge update/weight ratios, for steps of this size."),
    ] = None,
    parts: Annotated[
        int, Meta(ge=1, description="Parts of the data whose gradients are compared for the noise.")
    ] = 4,
    reinit: Annotated[
        str | None,
        f"Also measure other initialisations, a comma-separated list of {', '.join(_SCHEMES)}.",
    ] = None,
    seeds: Annotated[int, Meta(ge=1, description="Seeds for each of them.")] = 5,
    thresholds: Annotated[
        dict[str, float] | None,
        Meta(
            description=f"Threshold of a rule, name=value; repeatable. Rules: {', '.join(RULES)}."
        ),
    ] = None,
) -> GradientsResult:
    """Activations and gradients by layer: what vanishes, explodes, saturates or dies, and why.

    One backward pass shows every layer in execution order, the gain of the gradient per layer (χ) along the trunk
    of the network, its decay in time in recurrent layers, attention entropy, and the noise of the gradient.
    Findings compare gradients with each other: they do not change when the loss is multiplied by a constant.

    Args:
        context: the target.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    import torch

    from curvcli.operators.signals.gradient_flow import flow

    limits = limits_of(thresholds or {})
    schemes = _schemes(reinit)
    context.accept_nonfinite = True
    context.progress(Stage("loading", 0, None))
    objective = context.objective
    context.progress(Stage("gradients", 0, None))
    memory = context.spec.memory_bytes
    found = flow(objective, parts=parts, memory=memory, stop=context.stop)
    # A copied view that was meant to be written through would change what is computed.
    tolerance = 1e3 * torch.finfo(objective.dtype).eps * abs(objective.loss)
    if found.complete and abs(found.loss - objective.loss) > tolerance:
        context.notes.append("the layers' outputs share memory: watched without copies of views")
        found = flow(objective, parts=parts, memory=memory, clone_views=False, stop=context.stop)
    if not found.finite:
        found = flow(objective, parts=parts, memory=memory, count_nonfinite=True)
    if not found.complete:
        context.incomplete = True
        context.notes.append(
            f"ended early: {sum(found.part_samples)} of {objective.samples} samples were seen"
        )
    result = _answer(context, objective, found, worst, schemes, seeds)
    context.findings.extend(Judge(result, limits, learning_rate).findings())
    return result


def _answer(
    context: Context,
    objective: "Objective",
    found: "Flow",
    worst: int | None,
    schemes: list[str],
    seeds: int,
) -> GradientsResult:
    from curvcli.analyses.gradients.layers import finite, gradient_noise, layer_signals
    from curvcli.analyses.gradients.time import attention_heads, time_trends
    from curvcli.operators.signals.depth_trend import depth_trend, power

    recorder = found.recorder
    layers = layer_signals(objective, found)
    if not any(s.role != "sum" for s in layers):
        context.notes.append(
            "no layer was called as a module: an exported program shows only its functions"
        )
    trend = depth_trend(recorder.signals.values(), objective.samples)
    per_layer, whole = trend.gain(1), trend.gain(trend.span)
    if len(found.part_samples) < 2:
        context.notes.append(
            "no gradient noise: it needs two parts of the data (more batches, or one that can be cut)"
        )
    initialisations: list[Scheme] = []
    if schemes:
        from curvcli.analyses.gradients.schemes import compare

        initialisations = compare(context, objective, schemes, seeds)
    return GradientsResult(
        loss=finite(found.loss),
        layers=layers,
        depth_gain=finite(whole[0]) if whole else None,
        depth_gain_interval=_finite_pair(whole[1]) if whole else None,
        gain_per_layer=finite(per_layer[0]) if per_layer else None,
        gain_per_layer_interval=_finite_pair(per_layer[1]) if per_layer else None,
        chi=finite(per_layer[0] ** 2) if per_layer else None,
        chi_interval=_finite_pair(_squared(per_layer[1])) if per_layer else None,
        trend_layers=[s.name for s in trend.points],
        activation_gain_per_layer=(
            finite(power(trend.activation.slope)) if trend.activation else None
        ),
        activation_gain_per_layer_interval=_finite_pair(
            _powers(trend.activation.interval if trend.activation else None)
        ),
        residual_growth=_growth(layers),
        first_nonfinite=next((s.name for s in layers if s.nonfinite), None),
        time=time_trends(recorder, objective.samples, context.spec.seed, context.notes),
        attention=attention_heads(recorder),
        noise=gradient_noise(found),
        initialisations=initialisations,
        rows=worst,
    )


def _growth(layers: list[LayerSignal]) -> float | None:
    """RMS of the last over the first output of a residual block."""
    stream = [s.activation_rms for s in layers if s.role == "sum" and s.activation_rms]
    return stream[-1] / stream[0] if len(stream) > 1 else None


def _finite_pair(pair: tuple[float, float] | None) -> tuple[float, float] | None:
    return pair if pair is not None and all(map(math.isfinite, pair)) else None


def _squared(pair: tuple[float, float] | None) -> tuple[float, float] | None:
    return (pair[0] ** 2, pair[1] ** 2) if pair is not None else None


def _powers(pair: tuple[float, float] | None) -> tuple[float, float] | None:
    """The interval of a factor, from that of its logarithm."""
    from curvcli.operators.signals.depth_trend import power

    return (power(pair[0]), power(pair[1])) if pair is not None else None


def _schemes(text: str | None) -> list[str]:
    """The names in a comma-separated list."""
    names = [n.strip() for n in (text or "").split(",") if n.strip()]
    for name in names:
        if name not in _SCHEMES:
            raise UsageError(
                f"--reinit: there is no initialisation {name!r}.{did_you_mean(name, _SCHEMES)}",
                f"known: {', '.join(_SCHEMES)}",
            )
    return list(dict.fromkeys(names))


ANALYSIS = Analysis(gradients, view)
