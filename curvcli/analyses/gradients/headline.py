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
    reached = sum(layer.role != "unreached" for layer in result.layers)
    layers = f"{len(result.layers)} layer{'' if len(result.layers) == 1 else 's'}"
    count = "all" if reached == len(result.layers) else f"{reached} of"
    text = f"Healthy: gradients reach {count} {layers}"
    if result.depth_gain is not None and result.trend_layers:
        first, last = result.trend_layers[0], result.trend_layers[-1]
        text += f"; from {last} back to {first} "
        text += f"their size changes by a factor of about {number(result.depth_gain, 2)}"
    if result.sanity is not None and result.sanity.at_chance:
        text = text.replace("Healthy: g", "G", 1)
        text += f". But the loss is no better than that of a constant: {result.sanity.fit.why}"
        return judged(answer, f"{text}.", "attention", replaced=True)
    return judged(answer, f"{text}.", replaced=True)
