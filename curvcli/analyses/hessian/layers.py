"""Runs `curvcli hessian --per-layer`: the curvature of every layer beside that of the whole network."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch

from curvcli.analyses.hessian.command import HessianOptions
from curvcli.analyses.hessian.findings import LAYERS_NOT_CONVERGED
from curvcli.analyses.hessian.layers_result import (
    Bounded,
    Distances,
    Extreme,
    LayerCurvature,
    Overlap,
    PerLayer,
    PerParameter,
    Sampled,
)
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.spectrum.eigenpairs import Eigenpair, Reach
from curvcli.linalg.lanczos.alignment import space_error, vector_errors
from curvcli.linalg.lanczos.lanczos import LanczosResult
from curvcli.linalg.operator import holders_of
from curvcli.linalg.stochastic.heterogeneity import Densities, densities, heterogeneity
from curvcli.linalg.stochastic.probes import Sums, ratio
from curvcli.linalg.stochastic.quadrature import Estimate, Nodes
from curvcli.linalg.vectors import euclidean_norm
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.diagonal_blocks import DiagonalBlocks, blocks_of
from curvcli.operators.curvature.layer_spectra import (
    DENSITY_STEPS,
    BlockSpectrum,
    Leading,
    block_ends,
    block_rules,
    sample_norms,
    widen_by_rounding,
)


def look_at_layers(
    journal: Journal,
    operator: Curvature[Any],
    found: LanczosResult,
    pairs: Sequence[Eigenpair],
    known: Leading,
    options: HessianOptions,
    seed: int,
) -> PerLayer | None:
    """The curvature of every layer or block.

    Args:
        journal: where notes, findings and progress go.
        operator: H.
        found: what a Lanczos run on H has found.
        pairs: the same eigenpairs with their residuals.
        known: leading Ritz vectors of that run, which are taken out of H before its norm is sampled.
        options: layers or blocks, random vectors, tolerance, probability.
        seed: of the random vectors.

    Returns:
        None where the run was stopped before it had begun.
    """
    if journal.stop() is not None:
        journal.cut_short("ended before the layers were looked at")
        return None
    objective = operator.objective
    by: Literal["layer", "block"] = "block" if options.per_block else "layer"
    probes, density_probes = options.layer_probes, options.layer_density
    blocks = DiagonalBlocks(operator, blocks_of(objective, by))
    if not blocks.pruned:
        journal.note("here a product for one layer costs as much as one for the whole network")
    before = objective.cost.matvecs
    spectra = block_ends(
        blocks, tol=options.tol, max_matvecs=options.max_matvecs, capacity=operator.plan.capacity,
        seed=seed, probability=1 - options.probability, stop=journal.stop,
        progress=lambda i: journal.progress(Stage("steps of all layers", i, None)),
    )  # fmt: skip
    if journal.stop() is None:
        widen_by_rounding(blocks, spectra)
    square = sample_norms(
        blocks, spectra, known, probes, torch.Generator().manual_seed(seed), journal.stop,
        lambda i: journal.progress(Stage("traces of layers", i, probes)),
    )  # fmt: skip
    rules = block_rules(
        blocks, spectra, density_probes, seed, journal.stop,
        lambda i: journal.progress(Stage("densities of layers", i, density_probes)),
    )  # fmt: skip
    densities = _densities(rules)
    result = PerLayer(
        by=by,
        layers=_layers(blocks, spectra, found, pairs, densities, options.probability),
        diagonal_share=_diagonal_share(spectra, square),
        gradient_overlap=_overlap(operator, found, pairs),
        heterogeneity=_heterogeneity(spectra, densities),
        grid=None if densities is None else densities.grid_T.tolist(),
        probes=len(square.samples_S),
        products=objective.cost.matvecs - before,
    )
    _findings(journal, result, probes, density_probes, len(rules[0]))
    return result


def _layers(
    blocks: DiagonalBlocks,
    spectra: Sequence[BlockSpectrum],
    found: LanczosResult,
    pairs: Sequence[Eigenpair],
    densities: Densities | None,
    probability: float,
) -> list[LayerCurvature]:

    errors = vector_errors(
        [p.value for p in pairs], [p.residual for p in pairs], found.ritz_values_M
    )
    shares = [
        [
            float(block.ranks.norm(part_N)) ** 2
            for block, part_N in zip(blocks.blocks, blocks.cut(v_N), strict=True)
        ]
        for v_N in found.vectors_KN
    ]
    mean_LT = None if densities is None else densities.mean_LT
    errors_LT = None if densities is None else densities.errors_LT
    layers = []
    for i, s in enumerate(spectra):
        count = s.block.parameters
        trace = _sampled(s.trace)
        largest, smallest = (
            Extreme(e.value, e.residual, e.converged) for e in (s.largest, s.smallest)
        )
        layers.append(
            LayerCurvature(
                name=s.block.name,
                parameters=count,
                lambda_max=largest,
                lambda_min=smallest,
                reach=Reach(s.lower, s.upper, probability),
                trace=trace,
                frobenius=_root(_sampled(s.square)),
                per_parameter=PerParameter(
                    Bounded(largest.value / count, largest.residual / count),
                    Bounded(smallest.value / count, smallest.residual / count),
                    Sampled(_over(trace.value, count), _over(trace.standard_error, count)),
                ),
                shares=[of_vector[i] for of_vector in shares],
                shares_residual=list(errors),
                density=None if mean_LT is None else mean_LT[i].tolist(),
                density_standard_error=None if errors_LT is None else errors_LT[i].tolist(),
            )
        )
    return layers


def _over(value: float | None, count: int) -> float | None:
    return None if value is None else value / count


def _sampled(sums: Sums) -> Sampled:
    estimate = sums.estimate()
    return Sampled(None, None) if estimate is None else _of(estimate)


def _of(estimate: Estimate) -> Sampled:
    return Sampled(estimate.value, estimate.standard_error)


def _root(square: Sampled) -> Sampled:
    """√x, with the error that follows from that of x."""
    if square.value is None or square.value <= 0:
        return square
    root = math.sqrt(square.value)
    error = square.standard_error
    return Sampled(root, None if error is None else error / (2 * root))


def _diagonal_share(spectra: Sequence[BlockSpectrum], square: Sums) -> Sampled:

    samples = zip(*(s.square.samples_S for s in spectra), strict=True)
    above = Sums(sum(s.square.known for s in spectra), [sum(of_probe) for of_probe in samples])
    if len(spectra) == 1:
        return Sampled(1.0, 0.0)
    estimate = ratio(above, square)
    return Sampled(None, None) if estimate is None else _of(estimate)


def _overlap(operator: Curvature[Any], found: LanczosResult, pairs: Sequence[Eigenpair]) -> Overlap:
    """Of the gradient with the space of the top eigenvectors."""
    top, gradient_N, ranks = found.top, operator.gradient, holders_of(operator)
    norm = float(ranks.norm(gradient_N))
    if norm == 0 or top == 0:
        return Overlap(None, None, top)
    inside_K = ranks.over_entries(found.vectors_KN[:top] @ (gradient_N / norm))
    inside = float(euclidean_norm(inside_K)) ** 2
    error = space_error(
        [p.value for p in pairs[:top]],
        [p.residual for p in pairs[:top]],
        [(p.value, p.residual) for p in pairs[top:]],
        found.ritz_values_M,
    )
    return Overlap(inside, error, top)


def _densities(rules: list[list[Nodes]]) -> Densities | None:

    return densities(rules) if rules[0] else None


def _heterogeneity(
    spectra: Sequence[BlockSpectrum], densities: Densities | None
) -> Distances | None:

    found = None if densities is None else heterogeneity(densities)
    if densities is None or found is None:
        return None
    first, second = found.pair
    return Distances(
        mean=_of(found.mean),
        largest=_of(found.largest),
        pair=(spectra[first].block.name, spectra[second].block.name),
        resolution=densities.sigma,
        probes=len(densities.probes_PLT),
        steps=DENSITY_STEPS,
    )


def _findings(
    journal: Journal, result: PerLayer, probes: int, density_probes: int, densities: int
) -> None:
    open_ = [
        layer.name
        for layer in result.layers
        if not (layer.lambda_max.converged and layer.lambda_min.converged)
    ]
    if open_:
        journal.cut_short()
        journal.find(
            LAYERS_NOT_CONVERGED,
            open_[0],
            f"the ends of {len(open_)} of {len(result.layers)} layers have not converged",
            value=float(len(open_)),
        )
    if result.probes < probes or densities < density_probes:
        journal.cut_short()
        journal.note(
            f"ended early: {result.probes} of {probes} probes for traces and {densities} of "
            f"{density_probes} for densities were made"
        )
