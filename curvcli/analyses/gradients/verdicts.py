"""The rules of `curvcli gradients` applied: each finding names layer, value, threshold and a remedy."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from curvcli.analyses.gradients.nonfinite import nonfinite_findings
from curvcli.analyses.gradients.result import GradientsResult, LayerSignal
from curvcli.analyses.gradients.rules import RULES, attends
from curvcli.analyses.gradients.sanity import sanity_findings, sanity_notes
from curvcli.analyses.gradients.sequences import sequence_findings
from curvcli.report.data import Finding
from curvcli.report.numbers import about, number

# Weights below this share of usual ones let nothing through.
_NOTHING = 1e-3
# More hits of one rule are summed up in the message of the last one.
_SHOWN = 3
_DEAD = ("gradients.dead-layer", "gradients.chance-dead")
_RECTIFY = "use ReLU or GELU between the layers, normalisation or residual connections"


def _from_to(layers: list[LayerSignal]) -> str:
    first, last = layers[0].name, layers[-1].name
    return first if first == last else f"{first} to {last}"


@dataclass(frozen=True)
class Judge:
    """Applies the rules to a result.

    Args:
        result: what was measured.
        limits: threshold of every rule.
        learning_rate: for update/weight ratios; None leaves those rules out.
    """

    result: GradientsResult
    limits: Mapping[str, float]
    learning_rate: float | None = None
    given: frozenset[str] = frozenset()
    """Rules whose threshold the user set: they are obeyed to the letter."""
    loss_name: str | None = None
    fault_in_data: str | None = None
    """Which input is not finite."""
    in_double: bool = False
    """Whether float64 is used already."""

    def findings(self) -> list[Finding]:
        """Every finding, the gravest cause first, notes on what may be meant last."""
        found = list(self._judged())
        ill = any(f.severity != "note" for f in found)
        return found + list(sanity_notes(self.result, dict(self.limits), ill, self._finding))

    def _judged(self) -> Iterator[Finding]:
        limit, fault = self.limits["nonfinite"], self.fault_in_data
        yield from nonfinite_findings(self.result, limit, fault, self._finding, self.in_double)
        zero = list(self._zero())
        sane = list(sanity_findings(self.result, dict(self.limits), self.loss_name, self._finding))
        dead = [f for f in sane if f.rule in _DEAD]
        yield from dead
        yield from zero
        # Where no gradient arrives, what is left of it has no trend.
        depth = [] if zero else list(self._depth())
        yield from depth
        yield from (f for f in sane if f not in dead)
        # Behind a dead layer gradients are compared with next to nothing.
        if not zero and not dead:
            yield from self._layers(already=bool(depth))
        ends = {f.subject for f in sane if f.rule == "gradients.bounded-output"}
        yield from self._activations([s for s in self.result.layers if s.name not in ends])
        if self.learning_rate is not None:
            yield from self._updates(self.learning_rate)
        if depth:
            yield from self._weights()
        yield from sequence_findings(self.result, self._ill, self._finding)

    def _zero(self) -> Iterator[Finding]:
        """Layers with weights whose gradient is exactly zero, and where on the way back it becomes that."""
        weighted = [
            s
            for s in self.result.layers
            if s.weight_gradient_rms is not None and s.name not in self.result.unused
        ]
        zero = [s for s in weighted if s.weight_gradient_rms == 0]
        if not zero or self.result.loss is None:
            return
        share = len(zero) / len(weighted)
        if not self._ill("zero-gradient", share):
            return
        alive = [s for s in self.result.layers if s.activation_gradient_norm]
        told = [f"it is exactly zero at {len(zero)} of {len(weighted)} layers with weights"]
        fed = [s for s in zero if s.activation_gradient_norm]
        lost = [s for s in zero if not s.activation_gradient_norm]
        if fed:
            told.insert(
                0, f"weights of {_from_to(fed)} have none because all their inputs are zero"
            )
        if lost:
            where = self._where_lost(alive[0] if alive else None)
            told.insert(0, f"no gradient reaches {_from_to(lost)}: {where}")
        yield self._finding("zero-gradient", (lost or fed)[-1].name, share, "; ".join(told))

    def _where_lost(self, last: LayerSignal | None) -> str:
        """Where on the way back the gradient becomes zero: in the layer that is the last it comes to, or before."""
        if last is None:
            return "none leaves the loss; look for detach, or a softmax over a single output"
        place = f"{last.name} ({last.kind})"
        if last.dead_fraction == 1.0:
            return f"it becomes zero at {place}, where all units are dead"
        if last.dead_fraction:
            share = f"{last.dead_fraction:.0%}"
            return f"it becomes zero at {place}, where {share} of the units are dead and the others get none"
        return f"it becomes zero before {place}; look for dead units, round, clamp or detach there"

    def _depth(self) -> Iterator[Finding]:
        result = self.result
        gain, per_layer = result.depth_gain, result.gain_per_layer
        if gain is None or per_layer is None:
            return
        names = result.trend_layers
        measured = (
            f"from {names[-1]} back to {names[0]}, to {about(gain)} times its norm "
            f"({about(per_layer)} times a layer)"
        )
        if self._ill("vanishing-depth", gain) and self._certain(below=True):
            yield self._finding(
                "vanishing-depth", names[0], gain,
                f"the gradient vanishes {measured}: {self._why_vanishing()}",
            )  # fmt: skip
        if self._ill("exploding-depth", gain) and self._certain(below=False):
            yield self._finding(
                "exploding-depth", names[0], gain,
                f"the gradient explodes {measured}: {self._why_exploding()}",
            )  # fmt: skip

    def _certain(self, below: bool) -> bool:
        """Whether the trend itself is beyond doubt: its interval, where there is one, excludes 1."""
        interval = self.result.depth_gain_interval
        return interval is None or (interval[1] < 1 if below else interval[0] > 1)

    def _layers(self, already: bool) -> Iterator[Finding]:
        reached = [s for s in self.result.layers if s.activation_gradient_norm]
        trunk = [s for s in reached if s.role != "branch"]
        if not trunk:
            return
        last = trunk[-1]
        if last.activation_gradient_samples is not None:
            # What has no sample axis (a position embedding) gathers the gradients of all samples.
            reached = [s for s in reached if s.activation_gradient_samples is not None]
        normalised = {s.name for s in reached if s.normalised and s.role != "sum"}
        cause = (
            "the trend over the depth says where it comes from"
            if already
            else "look at this layer's weights, its activation function and for a missing normalisation"
        )

        def relative(s: LayerSignal, measure: str) -> float:
            return (getattr(s, measure) or 0.0) / (getattr(last, measure) or math.inf)

        def rms(s: LayerSignal) -> float:
            return relative(s, "activation_gradient_rms")

        def norm(s: LayerSignal) -> float:
            return relative(s, "activation_gradient_norm")

        largest: dict[str, float] = {}
        for s in reached:
            module = s.name.partition("#")[0]
            largest[module] = max(largest.get(module, 0.0), rms(s))

        def elsewhere(s: LayerSignal) -> bool:
            """Whether the layer gets its gradient by another call: adaptive solvers make calls that hardly count."""
            return s.role == "branch" and rms(s) < largest[s.name.partition("#")[0]]

        def peak(s: LayerSignal) -> float:
            # A single large entry is no explosion while the whole gradient is not large.
            return min(relative(s, "activation_gradient_peak"), norm(s))

        for rule, what, value in (
            ("vanishing-layer", "RMS", rms),
            ("exploding-layer", "norm", norm),
            ("exploding-peak", "largest entry and norm", peak),
        ):
            # The gradient before a normalisation is as large as its input is small; that behind it is judged.
            vanishing = rule == "vanishing-layer"
            skipped = attends if vanishing else normalised.__contains__
            yield from self._each(
                rule,
                [s for s in reached if not skipped(s.name) and not (vanishing and elsewhere(s))],
                value,
                lambda s, v, what=what: (  # type: ignore[misc]
                    f"the gradient at {s.name} is {about(v)} times that at the output "
                    f"{last.name} ({what}): {cause}"
                ),
                shown=1 if already else _SHOWN,
            )

    def _activations(self, layers: list[LayerSignal]) -> Iterator[Finding]:
        yield from self._each(
            "dead-units", layers, self._dead,
            lambda s, v: f"{v:.1%} of the units of {s.name} fire for no sample: use a smaller learning rate or "
            "LeakyReLU/GELU, and look at the biases before it",
        )  # fmt: skip
        yield from self._each(
            "saturated", layers, lambda s: s.saturated_fraction,
            lambda s, v: f"{v:.1%} of {s.name} is saturated (derivative below 10 % of its largest): use smaller "
            "initial weights (Xavier), normalise its input, or lower the learning rate",
        )  # fmt: skip
        yield from self._each(
            "flat", layers, lambda s: s.flat_fraction,
            lambda s, v: f"{v:.1%} of {s.name} has no derivative left (< 1e-7): use smaller initial weights "
            "(Xavier), or normalise its input",
        )  # fmt: skip

    def _dead(self, s: LayerSignal) -> float | None:
        """The share of dead units where chance does not explain it.

        Deep layers of random weights see inputs that are nearly alike (Schoenholz et al. 2017): each unit is then
        dead with probability one half, and every second layer has more than half. Three standard errors are allowed.
        """
        limit = self.limits["dead-units"]
        if s.dead_fraction is None or s.units is None:
            return None
        if s.dead_fraction == 1.0 or "dead-units" in self.given:
            return s.dead_fraction if s.dead_fraction > limit else None
        deviation = math.sqrt(max(0.0, limit * (1 - limit)) / s.units)
        return s.dead_fraction if s.dead_fraction > limit + 3 * deviation else None

    def _updates(self, rate: float) -> Iterator[Finding]:
        def value(s: LayerSignal) -> float | None:
            return None if s.gradient_to_weight is None else rate * s.gradient_to_weight

        yield from self._each(
            "update-large", self.result.layers, value,
            lambda s, v: f"a step of {rate:g} changes the weights of {s.name} by {about(v)} of their size: "
            "lower the learning rate or clip the gradient",
        )  # fmt: skip
        yield from self._each(
            "update-small", [s for s in self.result.layers if s.weight_rms], value,
            lambda s, v: f"a step of {rate:g} changes the weights of {s.name} by {about(v)} of their size: "
            "the layer stands still",
        )  # fmt: skip

    def _weights(self) -> Iterator[Finding]:
        scaled = [s for s in self.result.layers if s.weight_scale]
        if len(scaled) < 2:
            return
        low = min(scaled, key=lambda s: s.weight_scale or 0.0)
        high = max(scaled, key=lambda s: s.weight_scale or 0.0)
        ratio = ((high.weight_scale or 0.0) / (low.weight_scale or 1.0)) ** 2
        if self._ill("uneven-weights", ratio):
            yield self._finding(
                "uneven-weights", high.name, ratio,
                f"fan_in · variance of the weights is {about(ratio)} times larger in {high.name} than in "
                f"{low.name}: initialise all layers by one scheme ('--reinit default,kaiming' compares)",
            )  # fmt: skip

    def _why_vanishing(self) -> str:
        kinds = {s.kind.lower() for s in self.result.layers if s.role != "branch"}
        saturated = any((s.saturated_fraction or 0) > 0.5 for s in self.result.layers)
        if "sigmoid" in kinds:
            return f"each sigmoid multiplies it by at most 1/4; {_RECTIFY}"
        if saturated:
            return (
                "the activations are saturated; use smaller initial weights (Xavier) or normalise"
            )
        if any((s.dead_fraction or 0) > 0.5 for s in self.result.layers):
            return "dead units let nothing through; lower the learning rate, use LeakyReLU or GELU"
        scales = [s.weight_scale for s in self.result.layers if s.weight_scale]
        if scales and max(scales) < _NOTHING:
            return (
                "the weights of all layers are nearly zero (their deviation times √fan_in is at most "
                f"{about(max(scales))}; Kaiming: 1.41): lower the weight decay, or look at how they are initialised"
            )
        return (
            f"{self._scale()}use Kaiming (ReLU) or orthogonal initialisation, normalisation or residual "
            "connections; '--reinit default,kaiming,orthogonal' compares"
        )

    def _why_exploding(self) -> str:
        return (
            f"{self._scale()}use a smaller initial gain (Xavier, Kaiming), normalisation, a lower learning rate, or "
            "clip the gradient"
        )

    def _scale(self) -> str:
        scales = sorted(s.weight_scale for s in self.result.layers if s.weight_scale)
        if not scales:
            return ""
        middle = about(scales[len(scales) // 2])
        return f"√fan_in times the standard deviation of the weights is {middle} (Kaiming: 1.41); "

    def _each(
        self,
        rule: str,
        layers: list[LayerSignal],
        value: Callable[[LayerSignal], float | None],
        message: Callable[[LayerSignal, float], str],
        shown: int = _SHOWN,
    ) -> Iterator[Finding]:
        """One finding for each of the worst layers; the last says how many more there are."""
        hits = [(v, s) for s in layers if (v := value(s)) is not None and self._ill(rule, v)]
        hits.sort(key=lambda hit: hit[0], reverse=RULES[rule].above)
        for i, (v, s) in enumerate(hits[:shown]):
            rest = len(hits) - shown if i == shown - 1 else 0
            more = f" (and {rest} more layers)" if rest > 0 else ""
            yield self._finding(rule, s.name, v, message(s, v) + more)

    def _ill(self, rule: str, value: float | None) -> bool:
        return RULES[rule].violated(value, self.limits[rule])

    def _finding(self, rule: str, subject: str, value: float | None, message: str) -> Finding:
        limit = self.limits[rule]
        sign = ">" if RULES[rule].above else "<"
        return Finding(
            f"gradients.{rule}", RULES[rule].severity, subject, value, limit,
            f"{message} [{sign} {number(limit, 3)}: {RULES[rule].source}]",
        )  # fmt: skip
