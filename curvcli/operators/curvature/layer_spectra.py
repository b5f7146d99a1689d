"""The spectra of all diagonal blocks of a curvature matrix: ends, traces, norms and densities.

All blocks advance together, one product each at a time (`linalg.lockstep`), so that they share whatever graph there is.

Shapes: ``N`` parameters of the network or of one block, ``K`` vectors, ``S`` probes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from curvcli.linalg.lanczos.certify import certify, combinations
from curvcli.linalg.lanczos.factorization import LanczosState, start
from curvcli.linalg.lanczos.lanczos import lanczos_by_request
from curvcli.linalg.lanczos.lockstep import Request, lockstep
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.operator import ROUNDING, SMALL, eigh, holders_of, orthonormal
from curvcli.linalg.ranks import Ranks
from curvcli.linalg.stochastic.heterogeneity import rule_of, with_zeros
from curvcli.linalg.stochastic.probes import Sums, random_signs, without
from curvcli.linalg.stochastic.quadrature import Nodes
from curvcli.linalg.vectors import double
from curvcli.operators.curvature.diagonal_blocks import Block, DiagonalBlocks
from curvcli.operators.curvature.rounding import product_error, saturation, shift

# Up to so many entries a block is computed whole: no more products than a Lanczos run takes.
EXACT = 32
# Ritz vectors that are taken out of a block before its trace is sampled.
DEFLATED = 10
# Lanczos steps of each probe of a density.
DENSITY_STEPS = 24

Stop = Literal["timeout", "interrupted"]


@dataclass(frozen=True)
class End:
    """An eigenvalue at an end of a block's spectrum: some eigenvalue lies within ``value`` ± ``residual``."""

    value: float
    residual: float
    converged: bool


class Leading(NamedTuple):
    """Orthonormal vectors V whose products with A are known."""

    vectors_KN: Tensor
    trace: float
    """tr VᵀAV."""
    square: float
    """‖AV‖_F²."""


@dataclass
class BlockSpectrum:
    """What is known of one block."""

    block: Block
    largest: End
    smallest: End
    lower: float
    upper: float
    """No eigenvalue lies beyond these, with the probability asked for."""
    vectors_KN: Tensor
    """Orthonormal vectors, of the largest Ritz values by magnitude."""
    ends_KN: Tensor
    """Eigenvectors of both ends."""
    trace: Sums
    square: Sums
    """‖H_ll‖_F²."""
    eigenvalues: Nodes | None = None
    """All of them, for a block that was computed whole."""


def block_ends(
    blocks: DiagonalBlocks,
    *,
    tol: float,
    max_matvecs: int,
    capacity: int,
    seed: int,
    probability: float,
    stop: Callable[[], Stop | None],
    progress: Callable[[int], None],
) -> list[BlockSpectrum]:
    """The largest and the smallest eigenvalue of every block, and leading Ritz vectors.

    Args:
        blocks: the blocks.
        tol: converged when ρ ≤ tol · max(|θ|, 0.01 ‖H_ll‖).
        max_matvecs: steps after which a block ends with what it has.
        capacity: vectors of each block that are kept.
        seed: of the start vectors.
        probability: with which the bounds on a spectrum may fail.
        stop: asked before each step.
        progress: told after each step how many were made.

    Raises:
        NoAnswerError: stopped before the first step.
    """

    def of(index: int, block: Block) -> Request[BlockSpectrum]:
        if block.n <= EXACT:
            return _whole(block)
        state = start(block, capacity, _seed(seed, index))
        return _ends(block, state, tol, max_matvecs, probability, stop)

    done = 0

    def products(vectors: list[Tensor | None]) -> list[Tensor | None]:
        nonlocal done
        done += 1
        progress(done)
        return blocks.products(vectors)

    return lockstep([of(i, b) for i, b in enumerate(blocks.blocks)], products)


def widen_by_rounding(blocks: DiagonalBlocks, spectra: Sequence[BlockSpectrum]) -> None:
    """Residuals and bounds of all blocks, by what the rounding of products moves them.

    Two products with the whole matrix tell it for all, a little too large: errors of other blocks are in it.
    """
    operator = blocks.operator
    w_RN = torch.zeros(2, operator.length, dtype=operator.dtype, device=operator.device)
    for i, s in enumerate(spectra):
        drawn = combinations(s.ends_KN, i) @ s.ends_KN
        w_RN += torch.stack([blocks.embed(i, part_N) for part_N in drawn])
    found = product_error(operator, w_RN, torch.stack([operator.matvec(w_N) for w_N in w_RN]))
    if found is None:
        return
    parts = [torch.stack(rows) for rows in zip(*map(blocks.cut, found.error_RN), strict=True)]
    for s, part_RN in zip(spectra, parts, strict=True):
        norm = max(abs(s.largest.value), abs(s.smallest.value))
        moved = shift(s.ends_KN, part_RN, norm, s.block.ranks)
        if found.by == "rounded weights":
            moved += saturation(operator.objective) * norm
        s.largest = replace(s.largest, residual=s.largest.residual + moved)
        s.smallest = replace(s.smallest, residual=s.smallest.residual + moved)
        s.lower, s.upper = s.lower - moved, s.upper + moved


def sample_norms(
    blocks: DiagonalBlocks,
    spectra: Sequence[BlockSpectrum],
    known: Leading,
    probes: int,
    generator: torch.Generator,
    stop: Callable[[], object],
    progress: Callable[[int], None],
) -> Sums:
    """Traces and norms of the blocks, and ‖H‖_F², from the same random signs.

    Args:
        blocks: the blocks.
        spectra: of the blocks; their traces and norms are filled in.
        known: what is taken out of H.
        probes: products with H, and as many with each block that was not computed whole.
        generator: of the signs.
        stop: asked before each probe.
        progress: told how many were made.

    Returns:
        ‖H‖_F².
    """
    operator = blocks.operator
    ranks = holders_of(operator)
    squares_S: list[float] = []
    traces: list[list[float]] = [[] for _ in spectra]
    squares: list[list[float]] = [[] for _ in spectra]
    for probe in range(probes):
        if stop() is not None:
            break
        z_N = random_signs(operator.n, generator, known.vectors_KN)[ranks.entries(operator.n)]
        product_N = operator.matvec(without(known.vectors_KN, z_N, ranks))
        vectors: list[Tensor | None] = [
            None if s.eigenvalues is not None else without(s.vectors_KN, part_N, s.block.ranks)
            for s, part_N in zip(spectra, blocks.cut(z_N), strict=True)
        ]
        found = blocks.products(vectors) if any(v is not None for v in vectors) else vectors
        squares_S.append(_dot(product_N, product_N, ranks))
        for i, (s, v_N, w_N) in enumerate(zip(spectra, vectors, found, strict=True)):
            if v_N is None or w_N is None:
                traces[i].append(0.0)
                squares[i].append(0.0)
                continue
            traces[i].append(_dot(v_N, w_N, s.block.ranks))
            squares[i].append(_dot(w_N, w_N, s.block.ranks))
        progress(probe + 1)
    for s, traces_S, of_block_S in zip(spectra, traces, squares, strict=True):
        s.trace = Sums(s.trace.known, traces_S)
        s.square = Sums(s.square.known, of_block_S)
    return Sums(known.square, squares_S)


def block_rules(
    blocks: DiagonalBlocks,
    spectra: Sequence[BlockSpectrum],
    probes: int,
    seed: int,
    stop: Callable[[], Stop | None],
    progress: Callable[[int], None],
) -> list[list[Nodes]]:
    """Gauss rules of every block, one for each probe: ``rules[l][p]``; those that were finished before a stop."""
    rules: list[list[Nodes]] = [[] for _ in spectra]
    for probe in range(1, probes + 1):
        requests = [
            _rule(s, _seed(seed, i, probe), lambda: stop() is not None)
            for i, s in enumerate(spectra)
        ]
        found = lockstep(requests, blocks.products)
        if any(rule is None for rule in found):
            break
        for of_one, rule in zip(rules, found, strict=True):
            assert rule is not None
            of_one.append(rule)
        progress(probe)
    return rules


def _seed(seed: int, *where: int) -> int:
    """Another one for every block and probe."""
    return int(np.random.SeedSequence([seed, *where]).generate_state(1)[0])


def _whole(block: Block) -> Request[BlockSpectrum]:
    """Every entry of a small block."""
    eye_NN = torch.eye(block.n, dtype=block.dtype, device=block.device)
    own, rows = block.ranks.entries(block.n), []
    for unit_N in eye_NN:
        product_N = yield unit_N[own].clone()
        rows.append(block.ranks.whole(product_N).cpu().double().numpy())
    h_NN = np.array(rows)
    theta_N, s_NN = eigh((h_NN + h_NN.T) / 2)
    eps = torch.finfo(block.dtype).eps
    rounding = ROUNDING * eps * float(np.abs(theta_N).max()) + float(np.linalg.norm(h_NN - h_NN.T))
    low, high = float(theta_N[0]), float(theta_N[-1])
    if block.untouched:
        low, high = min(low, 0.0), max(high, 0.0)
    return BlockSpectrum(
        block,
        End(high, rounding, True),
        End(low, rounding, True),
        low - rounding,
        high + rounding,
        eye_NN[:0, own],
        torch.from_numpy(s_NN.T[[-1, 0]].copy()).to(eye_NN)[:, own],
        Sums(float(np.trace(h_NN)), []),
        Sums(float((h_NN**2).sum()), []),
        Nodes(theta_N, np.full(block.n, 1 / block.n)),
    )


def _ends(
    block: Block,
    state: LanczosState,
    tol: float,
    max_matvecs: int,
    probability: float,
    stop: Callable[[], Stop | None],
) -> Request[BlockSpectrum]:
    """A Lanczos run, and the products of the two vectors that it ends with."""
    found = yield from lanczos_by_request(
        block, Wanted(1, 1), state=state, tol=tol, max_matvecs=max_matvecs,
        probability=probability, recheck=0, stop=stop,
    )  # fmt: skip
    if found.status in ("timeout", "interrupted"):
        eps = torch.finfo(block.dtype).eps
        values_K, residuals_K = found.values_K, found.bounds_K + ROUNDING * eps * found.norm
    else:
        rows = []
        for v_N in found.vectors_KN:
            rows.append((yield v_N))
        products_KN, ranks = torch.stack(rows), block.ranks
        certificate = certify(found.vectors_KN, products_KN, found.norm, ranks=ranks)
        values_K, residuals_K = certificate.values_K, certificate.residuals_K
    margin = float(residuals_K.min())
    ends = [
        End(float(v), float(r), bool(r <= tol * max(abs(v), SMALL * found.norm)))
        for v, r in zip(values_K, residuals_K, strict=True)
    ]
    lower, upper = found.lower - margin, found.upper + margin
    if block.untouched:
        zero = End(0.0, 0.0, True)
        ends = [max(ends[0], zero, key=_value), min(ends[-1], zero, key=_value)]
        lower, upper = min(lower, 0.0), max(upper, 0.0)
    known = leading(state)
    trace, square = Sums(known.trace, []), Sums(known.square, [])
    return BlockSpectrum(
        block, ends[0], ends[-1], lower, upper, known.vectors_KN, found.vectors_KN, trace, square
    )


def _value(end: End) -> float:
    return end.value


def leading(state: LanczosState) -> Leading:
    """The vectors of the largest Ritz values by magnitude of a Lanczos run, without another product."""
    theta_M, s_MM = eigh(state.projected)
    chosen = np.argsort(-np.abs(theta_M), kind="stable")[:DEFLATED]
    s_MK, theta_K = np.ascontiguousarray(s_MM[:, chosen]), theta_M[chosen]
    # A V = V Θ + what is left in the directions outside the basis.
    tails = [*state.suspended, *([state.live] if state.live else [])]
    left = sum(float((tail.share(s_MK) ** 2).sum()) for tail in tails)
    vectors_KN = orthonormal(state.basis.combine(s_MK), state.basis.ranks)
    square = float((theta_K**2).sum()) + left
    return Leading(vectors_KN, float(theta_K.sum()), square)


def _rule(spectrum: BlockSpectrum, seed: int, stopped: Callable[[], bool]) -> Request[Nodes | None]:
    """The Gauss rule of one random vector; None where it was stopped."""
    block = spectrum.block
    rule = spectrum.eigenvalues
    if rule is None:
        state = start(block, min(block.n, DENSITY_STEPS + 1), seed)
        cut = False

        def over() -> Literal["interrupted", "max_matvecs"] | None:
            nonlocal cut
            cut = stopped()
            if cut and state.matvecs:
                return "interrupted"
            return None if state.first_cycle else "max_matvecs"

        yield from lanczos_by_request(
            block, Wanted(1, 1), state=state, tol=1e-300, max_matvecs=DENSITY_STEPS,
            recheck=0, stop=over,
        )  # fmt: skip
        if cut:
            return None
        rule = rule_of(state.alphas, state.betas)
    return with_zeros(rule, block.untouched / block.parameters)


def _dot(v_N: Tensor, w_N: Tensor, ranks: Ranks) -> float:
    return float(ranks.over_entries(double(v_N * w_N).sum()))
