"""Whether signals and gradients travel well, in one sentence."""

from curvcli.analyses.gradients.result import GradientsResult
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.report.data import Headline
from curvcli.report.numbers import number


def headline(answer: Answer[GradientsResult]) -> Headline:
    """Healthy, with the factor over the depth; or the worst that was found."""
    result = answer.result
    if result.first_nonfinite is not None:
        return judged(
            answer, f"NaN or Inf first appear in the output of {result.first_nonfinite}.", "bad"
        )
    count, missed = len(result.layers), [s.name for s in result.layers if s.role == "unreached"]
    reached = f"all {count} layers" if count > 1 else "the only layer"
    if missed:
        named = ", ".join(missed[:2]) + (", …" if len(missed) > 2 else "")
        reached = f"{count - len(missed)} of {count} layers (not {named})"
    text = f"Healthy: gradients reach {reached}"
    if result.depth_gain is not None and result.trend_layers:
        first, last = result.trend_layers[0], result.trend_layers[-1]
        text += f"; from {last} back to {first} "
        text += f"their size changes by a factor of about {number(result.depth_gain, 2)}"
    if result.sanity is not None and result.sanity.at_chance:
        text = text.replace("Healthy: g", "G", 1)
        text += f". But the loss is no better than that of a constant: {result.sanity.fit.why}"
        return judged(answer, f"{text}.", "attention", replaced=True)
    return judged(answer, f"{text}.", replaced=True)
