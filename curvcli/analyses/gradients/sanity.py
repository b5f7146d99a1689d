"""Findings from one forward pass: each names the likeliest cause and the next command."""

import math
from collections.abc import Callable, Iterator

from curvcli.analyses.gradients.result import GradientsResult
from curvcli.analyses.shared.sanity import LOGITS, ChannelInfo, SanityInfo
from curvcli.report.data import Finding
from curvcli.report.numbers import about, number

Make = Callable[[str, str, float | None, str], Finding]
"""(rule, subject, value, message) -> finding."""


def sanity_findings(
    result: GradientsResult, limits: dict[str, float], loss_name: str | None, make: Make
) -> Iterator[Finding]:
    """What is wrong with outputs, inputs and statistics.

    Args:
        result: what was measured.
        limits: threshold of every rule.
        loss_name: the loss, where it has a name.
        make: makes a finding of a rule.
    """
    sane = result.sanity
    if sane is None or result.loss is None:
        return
    yield from _dead(result, sane, limits, make)
    yield from _labels(sane, make)
    yield from _outputs(sane, loss_name, make)
    yield from _bounded(result, sane, loss_name, make)
    yield from _inputs(sane, limits, make)
    yield from _running(sane, limits, make)
    yield from _unmoved(result, make)


def sanity_notes(
    result: GradientsResult, limits: dict[str, float], ill: bool, make: Make
) -> Iterator[Finding]:
    """What may be meant: a network that has not learned, rare classes, frozen parameters.

    Args:
        result: what was measured.
        limits: threshold of every rule.
        ill: whether something graver was found, which explains the loss.
        make: makes a finding of a rule.
    """
    sane = result.sanity
    if sane is None or result.loss is None:
        return
    if not ill and sane.at_chance:
        yield make(
            "not-learned", "loss", sane.loss,
            f"{_chance(sane)}, while gradients arrive: the network has not learned. Fresh weights, a "
            "learning rate that is too small ('curvcli lr'), or labels that carry no signal (shuffled, off by a row); "
            "'curvcli step' says whether a step still helps",
        )  # fmt: skip
    right = sane.accuracy is not None and not sane.at_chance
    if (
        not ill
        and right
        and sane.chance
        and (sane.loss or 0.0) > limits["overconfident"] * sane.chance
    ):
        yield make(
            "overconfident", "loss", (sane.loss or 0.0) / sane.chance,
            f"{sane.accuracy:.1%} are right, and yet the loss, {number(sane.loss or 0.0)}, is above that of a constant "
            f"({number(sane.chance)}): the network is far too sure where it is wrong. Overfitting on other data, large "
            "initial weights, or inputs of a larger scale; stop earlier, add weight decay or label smoothing",
        )  # fmt: skip
    yield from _classes(sane, limits, make)
    if sane.frozen:
        yield make(
            "frozen", sane.frozen[0], float(len(sane.frozen)),
            f"{len(sane.frozen)} parameters are frozen while others are trained ({sane.frozen[0]} first): if this is "
            "not meant, look for requires_grad = False; --since CHECKPOINT finds what has not moved since",
        )  # fmt: skip
    yield from _idle(result, sane, make)


def _idle(result: GradientsResult, sane: SanityInfo, make: Make) -> Iterator[Finding]:
    """Parameters that the optimizer does not move, but for those that are said to be frozen or unmoved anyway."""
    said = {*sane.frozen, *(u.name for u in result.unmoved)}
    idle = [i for i in result.idle if i.name not in said]
    meant = "if this is not meant, look at what the optimizer was made with"
    if idle:
        why = {
            "not-given": "are not among its parameters: frozen, or forgotten when it was made",
            "no-state": "have no state while others have one: frozen in training, or not used by its loss",
            "zero-rate": "have a learning rate of zero",
        }
        causes = dict.fromkeys(i.cause for i in idle)
        told = "; ".join(
            f"{', '.join([i.name for i in idle if i.cause == cause][:4])} {why[cause]}"
            for cause in causes
        )
        yield make(
            "frozen", idle[0].name, float(len(idle)),
            f"the optimizer in the checkpoint does not move {len(idle)} of {result.tensors} parameters: "
            f"{told}; {meant}",
        )  # fmt: skip
    elif result.given is not None and result.given < result.tensors - len(sane.frozen) and not said:
        yield make(
            "frozen", "optimizer", float(result.tensors - result.given),
            f"the optimizer in the checkpoint has {result.given} of {result.tensors} parameters, and its state does "
            f"not say which: the others are frozen, or were forgotten; {meant}",
        )  # fmt: skip


def _chance(sane: SanityInfo) -> str:
    own, constant = number(sane.loss or 0.0), number(sane.chance or 0.0)
    return f"the loss, {own}, is no better than that of the best constant predictor ({constant})"


def _dead(
    result: GradientsResult, sane: SanityInfo, limits: dict[str, float], make: Make
) -> Iterator[Finding]:
    dying = [s for s in result.layers if (s.dead_fraction or 0.0) > limits["chance-dead"]]
    wholly = [s.name for s in dying if s.dead_fraction == 1.0]
    if len(wholly) > limits["dead-layer"]:
        named = ", ".join(wholly[:3])
        zero = [s.name for s in result.layers if s.weight_rms == 0]
        why = (
            f"the weights of {', '.join(zero[:3])} are all zero; initialise them at random"
            if zero
            else "a learning rate that was too high, or inputs of a wrong scale; start again, with a rate from "
            "'curvcli lr'"
        )
        yield make(
            "dead-layer", wholly[0], float(len(wholly)),
            f"no unit of {named} fires for any sample, so nothing that depends on the input passes: {why}",
        )  # fmt: skip
    if dying and sane.at_chance:
        worst = max(dying, key=lambda s: s.dead_fraction or 0.0)
        yield make(
            "chance-dead", worst.name, worst.dead_fraction,
            f"{_chance(sane)}, and {worst.dead_fraction:.0%} of the units of {worst.name} are "
            "dead: the network died. A learning rate that was too high is the usual cause ('curvcli lr')",
        )  # fmt: skip
    if sane.constant:
        yield make(
            "constant-output", "output", sane.output_spread,
            "the output is the same for every sample: dead units, vanished activations or an input that is not used; "
            "the table of layers shows where activations stop to vary",
        )  # fmt: skip


def _labels(sane: SanityInfo, make: Make) -> Iterator[Finding]:
    """Answers that are sure and wrong, and whether other names of the classes make them right."""
    if sane.renamed:
        yield make(
            "labels-renamed", "targets", sane.renamed_accuracy,
            f"{sane.renamed_accuracy:.1%} of the answers would be right if the classes had other names "
            f"({sane.renaming_told}), and {sane.accuracy:.1%} are: labels off by one, or classes in another order than "
            "in training; look at how labels are numbered",
        )  # fmt: skip
    elif sane.wrong and sane.chance and not sane.gathered:
        yield make(
            "no-statistics", "loss", (sane.loss or 0.0) / sane.chance,
            f"the loss is {about((sane.loss or 0.0) / sane.chance, 2)} times that of the best constant predictor, and "
            "no BatchNorm has gathered statistics (num_batches_tracked is 0): the network is not trained yet, or the "
            "checkpoint lacks its buffers",
        )  # fmt: skip
    elif sane.wrong and sane.chance:
        right = "" if sane.accuracy is None else f", with {sane.accuracy:.1%} right"
        yield make(
            "sure-and-wrong", "loss", (sane.loss or 0.0) / sane.chance,
            f"the loss, {number(sane.loss or 0.0)}, is {about((sane.loss or 0.0) / sane.chance, 2)} times that of "
            f"the best constant predictor{right}: the network is sure of wrong answers. Labels or inputs that are not "
            "those of training (rows shifted, other preprocessing), weights of another network, or a training that "
            "diverged; its loss on training data tells which",
        )  # fmt: skip


# The last activation function of a network, by what it does to logits.
_BOUNDED = {"relu": "never negative", "sigmoid": "between 0 and 1", "tanh": "between -1 and 1",
            "softmax": "between 0 and 1"}  # fmt: skip


def _bounded(
    result: GradientsResult, sane: SanityInfo, loss_name: str | None, make: Make
) -> Iterator[Finding]:
    """An activation function at the end, whose outputs are taken for logits."""
    last = result.layers[-1] if result.layers else None
    kind = last.kind.lower() if last is not None else ""
    twice = sane.simplex or (loss_name == "bce_with_logits" and sane.unit_interval)
    if loss_name not in LOGITS or twice:
        return
    seen = {
        "tanh": (sane.largest or math.inf) <= 1,
        "relu": sane.rectified,
        "sigmoid": sane.unit_interval,
        "softmax": sane.unit_interval,
    }
    if last is not None and seen.get(kind):
        name, told = (
            last.name,
            f"the network ends in {last.name}, whose outputs are {_BOUNDED[kind]}",
        )
    elif sane.rectified:
        name, told = "output", "no output is negative, and many are exactly zero, as behind a ReLU"
    elif sane.in_unit_interval:
        name, told = (
            "output",
            (
                "all outputs lie in [0, 1], as behind a sigmoid or a softmax over the samples instead of the classes"
            ),
        )
    else:
        return
    yield make(
        "bounded-output", name, None,
        f"{told}; {loss_name} takes logits, which may be any numbers, so the loss cannot fall as far as it could: drop "
        "the last activation function",
    )  # fmt: skip


def _outputs(sane: SanityInfo, loss_name: str | None, make: Make) -> Iterator[Finding]:
    if loss_name in ("cross_entropy", "token_cross_entropy") and sane.simplex:
        yield make(
            "softmax-twice", "output", None,
            "the outputs are probabilities that sum to one, and cross_entropy applies softmax itself: drop the "
            "softmax at the end of the network",
        )  # fmt: skip
    if loss_name == "nll" and not sane.log_simplex and sane.uniform is not None:
        yield make(
            "not-log-probabilities", "output", None,
            "the loss nll needs log-probabilities, and exp(outputs) does not sum to one: end with log_softmax, or use "
            "cross_entropy",
        )  # fmt: skip
    if loss_name == "bce_with_logits" and sane.unit_interval:
        yield make(
            "sigmoid-twice", "output", None,
            "all outputs lie in [0, 1], and bce_with_logits applies the sigmoid itself: drop the sigmoid at the "
            "end of the network",
        )  # fmt: skip


def _inputs(sane: SanityInfo, limits: dict[str, float], make: Make) -> Iterator[Finding]:
    known = [c for c in sane.inputs if c.rms]
    large = [c for c in known if _rms(c) > limits["inputs-large"]]
    # One-hot and other sparse inputs have a small RMS by their zeros alone.
    small = [c for c in known if _rms(c) < limits["inputs-small"] * math.sqrt(c.nonzero or 1.0)]
    for rule, found, why in (
        ("inputs-large", large, "not divided by 255, or not standardised"),
        ("inputs-small", small, "divided twice, or in another unit"),
    ):
        if found:
            worst = max(found, key=lambda c: abs(math.log(_rms(c))))
            others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            yield make(
                rule, worst.name, worst.rms,
                f"the RMS of {worst.name}{others} is {about(_rms(worst))} (mean {about(worst.mean or 0.0)}), "
                f"and about 1 is what initial weights are made for: {why}. Normalise the data as in training",
            )  # fmt: skip


def _rms(channel: ChannelInfo) -> float:
    return channel.rms or 0.0


def _running(sane: SanityInfo, limits: dict[str, float], make: Make) -> Iterator[Finding]:
    worst = max(sane.running, key=lambda r: r.distance, default=None)
    if worst is not None and worst.distance > limits["running-statistics"]:
        variance, shift = about(worst.variance_ratio or 0.0), about(worst.shift or 0.0)
        yield make(
            "running-statistics", worst.name, worst.variance_ratio,
            f"the running statistics of {worst.name} are not those of the data (variance {variance} "
            f"times, mean {shift} deviations away): data normalised otherwise than in training, too few steps, or "
            "statistics of another model; --train-mode uses those of the batch",
        )  # fmt: skip


def _unmoved(result: GradientsResult, make: Make) -> Iterator[Finding]:
    still, first = len(result.unmoved), next(iter(result.unmoved), None)
    if first is None:
        return
    if still == result.tensors:
        yield make(
            "unmoved", first.name, float(still),
            "no parameter has moved since that checkpoint: these are the same weights, or no step was taken",
        )  # fmt: skip
        return
    why = {
        "frozen": "frozen (requires_grad is False)",
        "no-gradient": "without a gradient: unused by the loss, detached, or behind dead units",
        "not-stepped": "reached by a gradient that no step uses: left out of the optimizer's parameters, frozen by the "
        "training program, or with a rate of zero",
    }[first.cause]
    named = ", ".join(u.name for u in result.unmoved[:3])
    yield make(
        "unmoved", first.name, float(still),
        f"{still} of {result.tensors} parameters have not moved since that checkpoint, while the others have "
        f"({named}): {first.name} is {why}. 'curvcli track' over all checkpoints says since when",
    )  # fmt: skip


def _classes(sane: SanityInfo, limits: dict[str, float], make: Make) -> Iterator[Finding]:
    counts = [c for c in sane.class_counts if c]
    if not 1 < len(sane.class_counts) <= 100 or not counts:
        return
    share = min(sane.class_counts) / max(counts)
    if share < limits["imbalance"]:
        absent = len(sane.class_counts) - len(counts)
        told = (
            f"{absent} {'class has' if absent == 1 else 'classes have'} no sample, "
            if absent
            else ""
        )
        yield make(
            "imbalance", "targets", share,
            f"{told}the rarest class has {min(sane.class_counts)} samples, the commonest {max(counts)}: accuracy says "
            "little then; look at single classes, and weigh them by --loss-arg weight=[…]",
        )  # fmt: skip
