"""Findings on what runs along a sequence: recurrent layers over time, and attention."""

from collections.abc import Callable, Iterator

from curvcli.analyses.gradients.result import GradientsResult
from curvcli.analyses.gradients.sanity import Make
from curvcli.report.data import Finding
from curvcli.report.numbers import about

Ill = Callable[[str, float | None], bool]
"""(rule, value) -> whether the rule is violated."""


def sequence_findings(result: GradientsResult, ill: Ill, make: Make) -> Iterator[Finding]:
    """Gradients that fade or explode over the steps, gates that do not move, attention that collapsed."""
    yield from _time(result, ill, make)
    yield from _attention(result, ill, make)


def _time(result: GradientsResult, ill: Ill, make: Make) -> Iterator[Finding]:
    for trend in result.time:
        if trend.kind == "positions":
            continue
        gain, steps = trend.gradient_gain, trend.steps
        if ill("vanishing-time", gain):
            horizon = (
                f" (to 1/e in {about(trend.memory_horizon, 2)} steps)"
                if trend.memory_horizon
                else ""
            )
            remedy = (
                "raise the forget gate's bias to 1 or more"
                if trend.kind.startswith("LSTM")
                else "use an LSTM or GRU, or orthogonal recurrent weights"
            )
            yield make(
                "vanishing-time", trend.name, gain,
                f"the gradient of {trend.name} fades to {about(gain)} times its norm over {steps} steps"
                f"{horizon}: {remedy}, shorten the sequences, or add attention",
            )  # fmt: skip
        horizon_share = trend.memory_horizon / steps if trend.memory_horizon else None
        if ill("short-memory", horizon_share) and not ill("vanishing-time", gain):
            yield make(
                "short-memory", trend.name, horizon_share,
                f"{trend.name} remembers {about(trend.memory_horizon or 0.0, 2)} of {steps} steps, and nothing "
                "further back: use an LSTM with a forget bias of 1, a GRU, or orthogonal weights",
            )  # fmt: skip
        if ill("exploding-time", gain):
            yield make(
                "exploding-time", trend.name, gain,
                f"the gradient of {trend.name} grows {about(gain)} times over {steps} steps: clip "
                "the gradient's norm, or use orthogonal recurrent weights",
            )  # fmt: skip
        for name, gate in trend.gates.items():
            if ill("gate-saturation", gate.saturated_fraction):
                yield make(
                    "gate-saturation", f"{trend.name}.{name}", gate.saturated_fraction,
                    f"{gate.saturated_fraction:.1%} of the {name} gate of {trend.name} is saturated (mean "
                    f"{gate.mean:.2f}): lower the learning rate, or normalise its input",
                )  # fmt: skip


def _attention(result: GradientsResult, ill: Ill, make: Make) -> Iterator[Finding]:
    for layer in result.attention:
        collapsed = [h for h in layer.entropy if ill("attention-collapse", h)]
        if collapsed and 2 * len(collapsed) > len(layer.entropy):
            yield make(
                "attention-collapse", layer.name, max(h for h in collapsed if h is not None),
                f"{len(collapsed)} of {len(layer.entropy)} heads of {layer.name} look at a single key: normalise "
                "queries and keys, lower the learning rate, or warm up longer",
            )  # fmt: skip
