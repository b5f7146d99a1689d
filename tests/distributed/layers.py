"""Diagonal blocks of divided weights: called by each process, and held against parts of a dense Hessian."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curvcli import Objective
from curvcli.operators.curvature.diagonal_blocks import DiagonalBlocks, blocks_of
from curvcli.operators.curvature.gauss_newton import GaussNewton
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.curvature.layer_spectra import BlockSpectrum, block_ends

TOL = 1e-9


def figures(objective: Objective, g_N: Tensor) -> dict[str, Any]:
    """By layers and by blocks: gₗᵀAₗₗgₗ and ‖Aₗₗgₗ‖² of each one, and the ends of its spectrum."""
    out: dict[str, Any] = {}
    for by in ("layer", "block"):
        for name, operator in (("hessian", Hessian(objective)), ("ggn", GaussNewton(objective))):
            blocks = DiagonalBlocks(operator, blocks_of(objective, by))
            parts = blocks.cut(g_N)
            found = zip(blocks.blocks, parts, blocks.products(list(parts)), strict=True)
            out[f"{name} by {by}"] = {
                block.name: [float(block.ranks.dot(u_N, w_N)), float(block.ranks.dot(w_N, w_N))]
                for block, u_N, w_N in found
                if w_N is not None
            }
        ends = block_ends(
            DiagonalBlocks(Hessian(objective), blocks_of(objective, by)),
            tol=TOL, max_matvecs=200, capacity=40, seed=0, probability=1e-3,
            stop=lambda: None, progress=lambda _: None,
        )  # fmt: skip
        out[f"ends by {by}"] = {s.block.name: _ends(s) for s in ends}
    return out


def _ends(s: BlockSpectrum) -> list[float]:
    return [s.largest.value, s.smallest.value, s.block.n, s.block.parameters]


def check(
    found: dict[str, Any], model: nn.Module, h_NN: Tensor, ggn_NN: Tensor, g_N: Tensor
) -> None:
    """Against the rows and columns of each layer, or of each element of a list."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    owners = [n for n, p in named.items() for _ in range(p.numel())]
    for by in ("layer", "block"):
        inside: dict[str, list[int]] = {}
        for i, owner in enumerate(owners):
            layer = owner.rpartition(".")[0]
            numbered = ".".join(layer.split(".")[:2]) if layer.startswith("blocks.") else layer
            inside.setdefault(layer if by == "layer" else numbered, []).append(i)
        assert set(found[f"ends by {by}"]) == set(inside)
        for name, own in inside.items():
            part_NN = h_NN[own][:, own]
            values_N = torch.linalg.eigvalsh(part_NN)
            largest, smallest, n, parameters = found[f"ends by {by}"][name]
            assert (n, parameters) == (len(own), len(own))
            # Ritz values are right to the square of the tolerance of their residuals.
            wanted = [float(values_N[-1]), float(values_N[0])]
            np.testing.assert_allclose(
                [largest, smallest], wanted, rtol=0, atol=1e-10 * float(values_N.abs().max())
            )
            for matrix, a_NN in (("hessian", h_NN), ("ggn", ggn_NN)):
                w_N = a_NN[own][:, own] @ g_N[own]
                scalars = [float(g_N[own] @ w_N), float(w_N @ w_N)]
                np.testing.assert_allclose(
                    found[f"{matrix} by {by}"][name], scalars, rtol=1e-9, atol=1e-12 * scalars[1]
                )
