"""How often the intervals of every question miss the dense float64 truth, over seeded networks of many kinds.

``python -m tests.oracles.intervals 300`` prints the table of `docs/intervals.md`.
"""

import copy
import dataclasses
import functools
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import scipy.linalg
import torch

from tests.oracles.jacobians import run as run_jacobian
from tests.oracles.mixture import eigenvalues, sample
from tests.oracles.moves import learning_rates, stepped
from tests.oracles.populations import compared, gradients
from tests.oracles.tally import Tally, Truth, half_width

# Parts that the processes take one by one: some networks take much longer than others.
_PARTS = 20
# Options with which random vectors are drawn even for the small matrices here.
_FEW = {"deflate": 2, "steps": 8, "probes": 8, "max_matvecs": 68}
_FEW_PROBES = {"steps": 12, "probes": 5, "max_probes": 5, "outliers": 3}


def tally(seeds: Iterable[int], kinds: Iterable[str] = ()) -> Tally:
    """Every question on every network, in both precisions; ``kinds`` are names of `QUESTIONS`, all by default."""
    found = Tally()
    chosen = list(kinds) or list(QUESTIONS)
    for seed in seeds:
        for dtype in (torch.float32, torch.float64):
            truth = _truth(seed, dtype)
            for kind in chosen:
                torch.manual_seed(seed)  # what was asked before, or was not, changes nothing
                QUESTIONS[kind](truth, found)
    return found


@functools.cache
def _truth(seed: int, dtype: torch.dtype) -> Truth:
    """The network of this number; training it takes longer than most questions, and all are asked of the same ones."""
    if dtype != torch.float32:
        return dataclasses.replace(_truth(seed, torch.float32), dtype=dtype)
    network = sample(seed)
    hessian_NN = network.hessian()
    return Truth(network, hessian_NN, eigenvalues(hessian_NN).flip(0), network.error(), dtype)


def _hessian(truth: Truth, tally: Tally) -> None:
    answer = truth.ask("hessian", top=5, bottom=3)
    result = answer.result
    pairs = all(truth.near(p.value, p.residual) for p in [*result.top, *result.bottom])
    tally.add(truth.kind("hessian: λ ± residual of a run"), pairs, truth.name)
    tally.add(truth.kind("hessian: reach"), truth.within(result.reach), truth.name)
    accused = any(f.rule == "hessian.products" for f in answer.findings)
    tally.add(truth.kind("hessian: right derivatives not accused"), not accused, truth.name)


def _layers(truth: Truth, tally: Tally) -> None:
    result = truth.ask("hessian", top=1, bottom=1, per_layer=True).result
    places: dict[str, list[int]] = {}
    first = 0
    for name, p in truth.network.model.named_parameters():
        if p.requires_grad:
            places.setdefault(name.rpartition(".")[0], []).extend(range(first, first + p.numel()))
            first += p.numel()
    for layer in result.per_layer.layers:
        if layer.name not in places:
            continue
        rows = places[layer.name]
        values = torch.linalg.eigvalsh(truth.hessian_NN[rows][:, rows])
        holds = all(
            float((values - end.value).abs().min()) <= end.residual + truth.error
            for end in (layer.lambda_max, layer.lambda_min)
        )
        tally.add(truth.kind("--per-layer: λ ± residual"), holds, f"{truth.name} {layer.name}")


def _saddle(truth: Truth, tally: Tally) -> None:
    result = truth.ask("saddle").result
    ends = all(truth.near(e.value, e.residual) for e in (result.lambda_min, result.lambda_max))
    tally.add(truth.kind("saddle: λ ± residual"), ends, truth.name)
    low, high = float(truth.values_N[-1]), float(truth.values_N[0])
    wrong = {
        "strict-saddle": not low < 0 < high,
        "local-minimum": low <= 0,
        "local-maximum": high >= 0,
        "flat-minimum": low < -1.1e-3 * max(abs(low), abs(high)),
    }.get(result.verdict, False)
    # A gradient that is rounding in this precision promises nothing that it could show.
    if result.verdict in ("local-minimum", "flat-minimum") and result.newton_promise is not None:
        wrong = wrong or _promise(truth) > 1.1e-2
    tally.add(truth.kind("saddle: verdict"), not wrong, f"{truth.name} {result.verdict}")


def _promise(truth: Truth) -> float:
    """½ gᵀ(H₊ + εI)⁻¹g / L by the dense Hessian."""
    model = truth.network.model
    model = model.double()
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = truth.network.value(model)
    gradient_N = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])
    found = scipy.linalg.eigh(truth.hessian_NN.numpy(), driver="ev")
    values, vectors = (torch.from_numpy(part) for part in found)
    slopes = vectors.T @ gradient_N
    damped = values.clamp(min=0) + 1e-5 * values.abs().max()
    return float(0.5 * (slopes.square() / damped).sum() / loss.detach())


def _taylor(truth: Truth, tally: Tally) -> None:
    result = truth.ask("taylor", direction=["gradient"], max_matvecs=3).result
    interval = result.critical_learning_rate_interval
    if interval is None:
        return
    rate = 2 / float(truth.values_N[0])
    slack = 1 + truth.error / abs(float(truth.values_N[0]))
    holds = interval[0] <= rate * slack and rate <= interval[1] * slack
    tally.add(truth.kind("taylor: 2/λ after three products"), holds, truth.name)


def _trace(truth: Truth, tally: Tally, options: dict[str, Any], how: str) -> None:
    result = truth.ask("trace", **options).result
    if (result.method == "whole") != (how == "whole"):
        return
    v = truth.values_N
    slack = truth.error * len(v)
    for what, estimate, value in (
        ("trace", result.trace, v.sum()),
        ("Frobenius norm", result.frobenius, v.square().sum().sqrt()),
        ("effective dimension", result.effective_dimension, (v**2 / (v**2 + result.damping**2)).sum()),
        ("participation ratio", result.participation_ratio, v.sum() ** 2 / v.square().sum()),
    ):  # fmt: skip
        allowed = slack if what in ("trace", "Frobenius norm") else 1e-9 * abs(float(value))
        holds = abs(estimate.value - float(value)) <= half_width(estimate) + allowed
        tally.add(truth.kind(f"trace, {how}: {what}"), holds, truth.name)


def _density(truth: Truth, tally: Tally, options: dict[str, Any], how: str) -> None:
    result = truth.ask("density", **options).result
    if (result.method == "whole") != (how == "whole"):
        return
    v = truth.values_N
    for moment in result.moments:
        value = float((v**moment.order).mean())
        slack = truth.error * moment.order * float((v.abs() ** (moment.order - 1)).mean())
        holds = abs(moment.value - value) <= half_width(moment) + slack
        tally.add(truth.kind(f"density, {how}: moments"), holds, truth.name)
    for share, value in (
        (result.mass_at_zero, float((v.abs() <= result.zero).double().mean())),
        (result.mass_below_zero, float((v < -result.zero).double().mean())),
    ):
        holds = share.interval[0] - 1e-9 <= value <= share.interval[1] + 1e-9
        tally.add(truth.kind(f"density, {how}: shares"), holds, truth.name)


def _gram(truth: Truth, tally: Tally, matrix: str) -> None:
    """The exact spectrum of products of Jacobians: the i-th value is the i-th eigenvalue."""
    result = truth.ask("hessian", top=5, bottom=0, matrix=matrix).result
    values_N, error = truth.network.sampled_spectrum(matrix)
    holds = all(
        abs(pair.value - float(value)) <= pair.residual + error
        for pair, value in zip(result.top, values_N, strict=False)
    )
    tally.add(truth.kind(f"hessian --matrix {matrix}: the i-th is the i-th"), holds, truth.name)


def _jacobian(truth: Truth, tally: Tally) -> None:
    model = copy.deepcopy(truth.network.model)
    result = run_jacobian(copy.deepcopy(model).to(truth.dtype), truth.network.x.to(truth.dtype))
    model = model.double()
    norms = pairs = True
    for found in result.samples:
        assert found.frobenius is not None
        assert found.frobenius_standard_error is not None
        x = truth.network.x[found.index].double()
        jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], x)
        values = torch.linalg.svdvals(jacobian)
        # The dense Jacobian's own rounding: of six inputs and three outputs through a few layers.
        slack = 1e-13 * float(values[0])
        norm = abs(float(jacobian.norm()) - found.frobenius)
        norms &= norm <= 3 * found.frobenius_standard_error + slack
        pairs &= all(
            float((values - s.value).abs().min()) <= (s.residual or 0.0) + slack
            for s in found.singular_values
        )
    tally.add(truth.kind("jacobian: ‖J‖_F of all samples"), norms, truth.name)
    tally.add(truth.kind("jacobian: σ ± residual of all samples"), pairs, truth.name)


QUESTIONS: dict[str, Callable[[Truth, Tally], None]] = {
    "hessian": _hessian,
    "ggn": lambda truth, found: _gram(truth, found, "ggn"),
    "empirical-fisher": lambda truth, found: _gram(truth, found, "empirical-fisher"),
    "jacobian": _jacobian,
    "layers": _layers,
    "saddle": _saddle,
    "taylor": _taylor,
    "trace": lambda truth, found: _trace(truth, found, {}, "whole"),
    "trace-probes": lambda truth, found: _trace(truth, found, _FEW, "probes"),
    "density": lambda truth, found: _density(truth, found, {}, "whole"),
    "density-probes": lambda truth, found: _density(truth, found, _FEW_PROBES, "probes"),
    "step": stepped,
    "lr": learning_rates,
    "gradients": gradients,
    "compare": compared,
}


def _main() -> None:
    count, kinds = int(sys.argv[1]), sys.argv[2:]
    workers = os.cpu_count() or 1
    # Every worker starts anew: a forked torch may hang in its thread pool.
    with multiprocessing.get_context("spawn").Pool(workers, _quiet) as pool:
        parts = [(range(first, count, _PARTS), kinds) for first in range(_PARTS)]
        found = sum(pool.starmap(tally, parts, chunksize=1), Tally())
    print(found.table())
    for kind, names in found.which.items():
        print(f"{kind}: {'; '.join(names)}", file=sys.stderr)


def _quiet() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    _main()
