"""`curvcli gradients`: who vanishes, who explodes, where, and why."""

import math
from pathlib import Path

import torch
from msgspec.structs import replace
from torch import Tensor

from curvcli.analyses.gradients.command import SCHEMES, GradientsOptions
from curvcli.analyses.gradients.layers import finite, gradient_noise, layer_signals
from curvcli.analyses.gradients.result import GradientsResult, Idle, LayerSignal, Scheme, Unmoved
from curvcli.analyses.gradients.rules import limits_of
from curvcli.analyses.gradients.schemes import compare
from curvcli.analyses.gradients.time import attention_heads, time_trends
from curvcli.analyses.gradients.unused import unused
from curvcli.analyses.gradients.verdicts import Judge
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import CheckpointError, UsageError, did_you_mean, some
from curvcli.loading.checkpoints.training import given, read_training, steps_by_name
from curvcli.objective.faults import fault_in_data
from curvcli.objective.movement import moved, still, weights_of
from curvcli.objective.objective import Objective
from curvcli.operators.signals.depth_trend import depth_trend, power
from curvcli.operators.signals.gradient_flow import Flow, flow


def run(subject: Subject, options: GradientsOptions, journal: Journal) -> Answer[GradientsResult]:
    """Answer `curvcli gradients`; see `GradientsOptions`.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    limits = limits_of(options.thresholds or {})
    set_by_user = frozenset(n.removeprefix("gradients.") for n in options.thresholds or {})
    schemes = _schemes(options.reinit)
    journal.progress(Stage("loading", 0, None))
    objective = subject.load(accept_nonfinite=True)
    journal.progress(Stage("gradients", 0, None))
    memory = subject.spec.memory_bytes
    found = flow(objective, parts=options.parts, memory=memory, stop=journal.stop)
    # A copied view that was meant to be written through would change what is computed.
    tolerance = 1e3 * torch.finfo(objective.dtype).eps * abs(objective.loss)
    if found.complete and abs(found.loss - objective.loss) > tolerance:
        journal.note("the layers' outputs share memory: watched without copies of views")
        found = flow(
            objective, parts=options.parts, memory=memory, clone_views=False, stop=journal.stop
        )
    if not found.finite:
        found = flow(objective, parts=options.parts, memory=memory, count_nonfinite=True)
    if not found.complete:
        journal.cut_short()
        journal.note(
            f"ended early: {sum(found.part_samples)} of {objective.samples} samples were seen"
        )
    result = _answer(subject, journal, objective, found, options.worst, schemes, options.seeds)
    aside = unused(objective, result.layers) if found.complete and found.finite else []
    if aside:
        result = replace(result, unused=aside)
        journal.note(f"the loss does not depend on {some(aside)}: no gradient is due there")
    if options.since is not None:
        result = replace(result, unmoved=_unmoved(subject, found, options.since))
    idle, given = _idle(subject, found, journal)
    result = replace(result, idle=idle, given=given)
    name = getattr(objective.terms, "name", None)
    fault = fault_in_data(objective.batches, harmless=found.finite)
    judge = Judge(
        result, limits, options.learning_rate, set_by_user, name, fault, subject.in_double()
    )
    journal.findings.extend(judge.findings())
    return journal.answer(result)


def _answer(
    subject: Subject,
    journal: Journal,
    objective: Objective,
    found: Flow,
    worst: int | None,
    schemes: list[str],
    seeds: int,
) -> GradientsResult:

    recorder = found.recorder
    layers = layer_signals(objective, found)
    if not any(s.role != "sum" for s in layers):
        journal.note(
            "no layer was called as a module: an exported program shows only its functions"
        )
    trend = depth_trend(recorder.signals.values(), objective.samples)
    per_layer, whole = trend.gain(1), trend.gain(trend.span)
    if len(found.part_samples) < 2:
        journal.note(
            "no gradient noise: it needs two parts of the data (more batches, or one that can be cut)"
        )
    initialisations: list[Scheme] = []
    if schemes:
        initialisations = compare(subject, journal, objective, schemes, seeds)
    return GradientsResult(
        # Pieces are rounded otherwise than whole batches: what is shown is L as every command has it.
        loss=finite(objective.loss if found.complete and found.finite else found.loss),
        sanity=subject.forward_pass() if found.complete else None,
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
        residual_growth=_growth(layers, type(objective.model).__name__),
        first_nonfinite=next((s.name for s in layers if s.nonfinite), None),
        time=time_trends(recorder, objective.samples, subject.spec.seed, journal.notes),
        attention=attention_heads(recorder),
        noise=gradient_noise(found),
        initialisations=initialisations,
        tensors=sum(p.is_floating_point() for p in objective.model.parameters()),
        rows=worst,
    )


def _unmoved(subject: Subject, found: Flow, since: str) -> list[Unmoved]:
    """Parameters that have the values of an earlier checkpoint, and why that may be."""
    objective = subject.load(accept_nonfinite=True)
    ways = moved(subject.weights_in(since), weights_of(objective.model))
    arriving = {n for n, g in zip(objective.names, found.gradient, strict=True) if bool(g.any())}
    frozen = {n for n, p in objective.model.named_parameters() if not p.requires_grad}
    return [
        Unmoved(n, "frozen" if n in frozen else "not-stepped" if n in arriving else "no-gradient")
        for n in still(ways)
    ]


def _idle(subject: Subject, found: Flow, journal: Journal) -> tuple[list[Idle], int | None]:
    """Parameters that the checkpoint's own optimizer does not move, and how many it has."""
    path, objective = Path(subject.spec.checkpoint or ""), subject.load(accept_nonfinite=True)
    training = None
    if subject.spec.checkpoint is not None:
        training = read_training(path, subject.spec.unsafe_pickle)
    if training is None or training.optimizer is None:
        return [], None
    shapes = {n: tuple(p.shape) for n, p in objective.model.named_parameters()}
    count, notes = given(training.optimizer), list[str]()

    def gradient() -> dict[str, Tensor]:
        return dict(zip(objective.names, found.gradient, strict=True))

    try:
        steps = steps_by_name(training.optimizer, shapes, path, notes, gradient)
    except CheckpointError:
        return [], count
    if steps.idle:
        journal.notes.extend(notes)
    return [Idle(name, cause) for name, cause in steps.idle.items()], count


def _growth(layers: list[LayerSignal], network: str) -> float | None:
    """RMS of the last over the first output of a residual block; that of the whole network is none."""
    blocks = [s for s in layers if s.role == "sum" and s.name != network]
    stream = [s.activation_rms for s in blocks if s.activation_rms]
    return stream[-1] / stream[0] if len(stream) > 1 else None


def _finite_pair(pair: tuple[float, float] | None) -> tuple[float, float] | None:
    return pair if pair is not None and all(map(math.isfinite, pair)) else None


def _squared(pair: tuple[float, float] | None) -> tuple[float, float] | None:
    return (pair[0] ** 2, pair[1] ** 2) if pair is not None else None


def _powers(pair: tuple[float, float] | None) -> tuple[float, float] | None:
    """The interval of a factor, from that of its logarithm."""
    return (power(pair[0]), power(pair[1])) if pair is not None else None


def _schemes(text: str | None) -> list[str]:
    """The names in a comma-separated list."""
    names = [n.strip() for n in (text or "").split(",") if n.strip()]
    for name in names:
        if name not in SCHEMES:
            raise UsageError(
                f"--reinit: there is no initialisation {name!r}.{did_you_mean(name, SCHEMES)}",
                f"known: {', '.join(SCHEMES)}",
            )
    return list(dict.fromkeys(names))
