"""Whether signals and gradients travel well, in one sentence."""

from curvcli.analyses.gradients.result import GradientsResult
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.report.data import Headline
from curvcli.report.numbers import about, at_least, at_most

# A fit that leaves a larger factor open says nothing of the norm.
_CLEAR = 2.0


def headline(answer: Answer[GradientsResult]) -> Headline:
    """Healthy, with the factor over the depth; or the worst that was found."""
    result = answer.result
    if result.first_nonfinite is not None:
        return judged(
            answer, f"NaN or Inf first appear in the output of {result.first_nonfinite}.", "bad"
        )
    # No gradient is missed where nothing is trained in a layer, or where it comes by another call.
    come = {_module(s.name) for s in result.layers if s.role != "unreached"}
    layers = [
        s for s in result.layers
        if s.role != "unreached" or (s.weight_rms is not None and _module(s.name) not in come)
    ]  # fmt: skip
    count, missed = len(layers), [s.name for s in layers if s.role == "unreached"]
    reached = f"all {count} layers" if count > 1 else "the only layer"
    if missed:
        named = ", ".join(missed[:2]) + (", …" if len(missed) > 2 else "")
        reached = f"{count - len(missed)} of {count} layers (not {named})"
    text = f"Healthy: gradients reach {reached}"
    if result.depth_gain is not None and result.trend_layers:
        first, last = result.trend_layers[0], result.trend_layers[-1]
        text += (
            f"; from {last} back to {first} {_depth(result.depth_gain, result.depth_gain_interval)}"
        )
    if result.sanity is not None and result.sanity.at_chance:
        text = text.replace("Healthy: g", "G", 1)
        text += f". But the loss is no better than that of a constant: {result.sanity.fit.why}"
        return judged(answer, f"{text}.", "attention", replaced=True)
    return judged(answer, f"{text}.", replaced=True)


def _module(call: str) -> str:
    return call.partition("#")[0]


def _depth(gain: float, interval: tuple[float, float] | None) -> str:
    """How the norm of the gradient changes on the way back, as far as the fit over the layers is sure of it."""
    if interval is not None:
        low, high = interval
        if low > 1:
            return f"their norm grows at least {at_least(low, 2)} times"
        if high < 1:
            return f"their norm shrinks to at most {at_most(high, 2)} times its size"
        if max(high, 1 / low) > _CLEAR:
            return "it cannot be told whether their norm grows or shrinks"
        return f"their norm stays the same within a factor of {at_most(max(high, 1 / low), 2)}"
    if f"{gain:.1f}" == "1.0":
        return "their norm stays the same"
    if gain < 1:
        return f"their norm shrinks to about {about(gain, 2)} times its size"
    return f"their norm grows about {about(gain, 2)} times"
