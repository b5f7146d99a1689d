"""Sampling errors of `gradients` and `compare`: samples are drawn from a population whose figures are known better.

The truth comes from a much larger draw, sample by sample in float64; its own sampling error widens the intervals.
"""

import copy
import math
from dataclasses import replace

import torch
from scipy import stats
from torch import Tensor, nn

from curvcli import Subject, analyse
from curvcli.analyses.compare.paired import paired
from curvcli.analyses.compare.sampling import sampling
from tests.oracles.mixture import LOSSES, Sample
from tests.oracles.tally import Tally, Truth

# Samples that are inspected, and that the truth is taken from.
_DRAWN, _POPULATION = 64, 1200
_OUTPUTS = 3


def gradients(truth: Truth, tally: Tally) -> None:
    """tr Σ and ‖G‖² ± two standard errors."""
    if truth.dtype != torch.float32:  # rounding has no part in sampling
        return
    drawn = _draw(truth.network, 2, _DRAWN)
    noise = analyse("gradients", Subject(objective=drawn.objective())).result.noise
    assert noise is not None
    g_SN = _sample_gradients(_draw(truth.network, 3, _POPULATION))
    mean_N = g_SN.mean(0)
    squares_S = (g_SN - mean_N).square().sum(1)
    trace, trace_error = float(squares_S.mean()), float(squares_S.std()) / _POPULATION**0.5
    signal = float(mean_N.square().sum()) - trace / _POPULATION
    signal_error = 2 * float((g_SN @ mean_N).std()) / _POPULATION**0.5
    quantile = stats.t.ppf(0.975, max(1, noise.parts - 1))
    for what, found, error, value, own in (
        ("tr Σ", noise.trace, noise.trace_error, trace, trace_error),
        ("‖G‖²", noise.gradient_square, noise.gradient_square_error, signal, signal_error),
    ):
        assert found is not None
        assert error is not None
        holds = abs(found - value) <= quantile * math.hypot(error, own)
        tally.add(truth.kind(f"gradients: {what} of the population"), holds, truth.name)


def compared(truth: Truth, tally: Tally) -> None:
    """The paired difference of two networks, and sets of one distribution that are not said to differ."""
    if truth.dtype != torch.float32:
        return
    other = _moved(truth.network)
    a, b = (_draw(network, 2, _DRAWN).objective() for network in (truth.network, other))
    found = paired(a, b)
    assert found is not None
    assert found.standard_error is not None
    large = [_losses(_draw(network, 3, 4 * _POPULATION)) for network in (truth.network, other)]
    difference_S = large[1] - large[0]
    value, own = float(difference_S.mean()), float(difference_S.std()) / len(difference_S) ** 0.5
    quantile = stats.t.ppf(0.975, found.pieces - 1)
    holds = abs(found.difference - value) <= quantile * math.hypot(found.standard_error, own)
    tally.add(truth.kind("compare: paired difference of the population"), holds, truth.name)
    worse = {"a": value + 3 * own < 0, "b": value - 3 * own > 0}
    tally.add(
        truth.kind("compare: which is better"), not worse.get(found.better or "", False), truth.name
    )
    alike = sampling(a, _draw(truth.network, 5, _DRAWN).objective(), None)
    same = not (alike.loss.beyond or alike.gradient.beyond)
    tally.add(
        truth.kind("compare: data of one distribution is not said to differ"), same, truth.name
    )


def _draw(network: Sample, seed: int, count: int) -> Sample:
    """The same network with fresh samples of one distribution."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    y: Tensor = torch.randn(count, _OUTPUTS, generator=generator)
    if network.loss == "cross_entropy":
        y = torch.randint(_OUTPUTS, (count,), generator=generator)
    elif network.loss == "bce_with_logits":
        y = (y > 0).float()
    return replace(network, x=x, y=y, batches=[count])


def _moved(network: Sample) -> Sample:
    """Another network nearby."""
    model = copy.deepcopy(network.model)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.1
                * torch.randn(parameter.shape, generator=generator)
                * parameter.std(correction=0)
            )
    return replace(network, model=model)


def _sample_gradients(drawn: Sample) -> Tensor:
    """The gradient of each sample's loss, (S, N), float64."""
    model = copy.deepcopy(drawn.model).double()
    wanted = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for loss in _each(drawn, model):
        rows.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, wanted, retain_graph=True)])
        )
    return torch.stack(rows)


def _each(drawn: Sample, model: nn.Module) -> list[Tensor]:
    y = drawn.y.double() if drawn.y.is_floating_point() else drawn.y
    loss = LOSSES[drawn.loss]
    return [loss(model(x[None]), t[None]) for x, t in zip(drawn.x.double(), y, strict=True)]


def _losses(drawn: Sample) -> Tensor:
    """The loss of each sample, (S,), float64."""
    model = copy.deepcopy(drawn.model).double()
    y = drawn.y.double() if drawn.y.is_floating_point() else drawn.y
    loss = LOSSES[drawn.loss]
    with torch.no_grad():
        outputs = model(drawn.x.double())
        return torch.stack([loss(o[None], t[None]) for o, t in zip(outputs, y, strict=True)])
