"""The rules of `curvcli gradients`: what counts as ill, by whose threshold, and what to do about it.

Gradients are compared with each other, never with an absolute number: multiplying the loss by a constant
changes no finding. Where a rule elsewhere is absolute, the unit here is the gradient at the network's output.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from curvcli.analyses.shared.sanity import AT_CHANCE, CONSTANT, FAR, LARGE, RENAMED, SMALL
from curvcli.errors import UsageError, did_you_mean
from curvcli.report.data import WRONG, Severity


@dataclass(frozen=True)
class Rule:
    """One rule; its finding's id is ``gradients.`` and the name."""

    name: str
    severity: Severity
    threshold: float
    above: bool
    """Whether values above the threshold are ill, or those below."""
    source: str

    def violated(self, value: float | None, threshold: float) -> bool:
        """Whether a value is ill."""
        if value is None or math.isnan(value):
            return False
        return value > threshold if self.above else value < threshold


RULES = {
    rule.name: rule
    for rule in (
        Rule("zero-gradient", "error", 0, True, "a gradient that is exactly zero trains nothing"),
        Rule("nonfinite", "error", 0, True, "SageMaker Debugger: any non-finite value"),
        Rule("vanishing-depth", "error", 1e-3, False, "torchmortem: first/last norm ratio, critical"),
        Rule("exploding-depth", "error", 1e3, True, "torchmortem: norm > 1000"),
        Rule("vanishing-layer", "warning", 1e-7, False, "SageMaker Debugger: mean |g| < 1e-7"),
        Rule("exploding-layer", "warning", 1e3, True, "torchmortem: norm > 1000"),
        Rule("exploding-peak", "warning", 100, True, "torchdiag: max |g| > 100"),
        Rule("dead-units", "warning", 0.5, True, "SageMaker Debugger: more than half of a layer"),
        Rule("saturated", "warning", 0.5, True, "torchmortem: |a| > 0.95 in more than half"),
        Rule("flat", "warning", 0.5, True, "SageMaker Debugger: derivative < 1e-7 in more than half"),
        Rule("update-large", "warning", 0.1, True, "torchmortem: update/weight > 1e-1"),
        Rule("update-small", "note", 1e-8, False, "SageMaker Debugger: update/weight < 1e-8"),
        Rule("uneven-weights", "note", 10, True, "SageMaker Debugger: variance ratio over layers"),
        Rule("vanishing-time", "error", 1e-6, False, "resolution of float32 sums, 1e-7, tenfold"),
        Rule("exploding-time", "error", 1e3, True, "torchmortem: norm > 1000, first to last step"),
        Rule("gate-saturation", "warning", 0.9, True, "a gate that neither opens nor closes"),
        Rule("short-memory", "warning", 0.1, False, "a horizon of less than a tenth of the sequence"),
        Rule("dead-layer", "error", 0, True, "a layer whose units are all dead passes nothing"),
        Rule("chance-dead", "error", 0.5, True, "dead units, and the loss of a constant predictor"),
        Rule("constant-output", "error", CONSTANT, False, "deviation over the samples, relative"),
        Rule("softmax-twice", "error", 1, False, "softmax of softmax is nearly uniform"),
        Rule("not-log-probabilities", "error", 1, False, "nll is -outputs[target]"),
        Rule("sigmoid-twice", "warning", 1, False, "sigmoid of sigmoid lies in [0.5, 0.73]"),
        Rule("bounded-output", "warning", 1, False, "logits are any numbers"),
        Rule("labels-renamed", "warning", RENAMED, True, "accuracy under other names of the classes"),
        Rule("sure-and-wrong", "warning", WRONG, True, "loss over that of the best constant predictor"),
        Rule("no-statistics", "note", WRONG, True, "loss over that of the best constant predictor"),
        Rule("inputs-large", "warning", LARGE, True, "initial weights are made for inputs of RMS 1"),
        Rule("inputs-small", "warning", SMALL, False, "initial weights are made for inputs of RMS 1"),
        Rule("running-statistics", "warning", FAR, True, "ratio of variances, or 1 + squared shift"),
        Rule("not-learned", "note", AT_CHANCE, True, "loss over that of the best constant predictor"),
        Rule("overconfident", "note", 1, True, "loss over that of a constant, with right answers"),
        Rule("imbalance", "note", 0.1, False, "rarest over commonest class"),
        Rule("frozen", "note", 0, True, "parameters without a gradient beside others"),
        Rule("unmoved", "warning", 0, True, "parameters that moved by less than 1e-7 of their size"),
        Rule("attention-collapse", "warning", 0.01, False, "entropy collapse: Zhai et al. 2023"),
    )
}  # fmt: skip


def limits_of(given: Mapping[str, float]) -> dict[str, float]:
    """The threshold of every rule, the defaults replaced by what the user set.

    Raises:
        UsageError: there is no such rule.
    """
    chosen = {name: rule.threshold for name, rule in RULES.items()}
    for key, value in given.items():
        name = key.removeprefix("gradients.")
        if name not in RULES:
            raise UsageError(
                f"there is no rule {key!r}.{did_you_mean(name, RULES)}",
                f"rules: {', '.join(RULES)}",
            )
        chosen[name] = value
    return chosen


# The last part of the names that libraries give to the projections of attention.
_ATTENDING = re.compile(r"(pos_)?(query|key|q|k)(_?(proj|lin|layer|head|dense|net))?")


def attends(layer: str) -> bool:
    """Whether it makes queries or keys, whose gradient is small as long as all places are attended to alike."""
    return _ATTENDING.fullmatch(layer.rpartition(".")[2]) is not None
