"""Other matrices than the Hessian on divided weights: called by each process, and held against dense ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curvcli import Batch, Objective
from curvcli.operators.curvature.fisher import EmpiricalFisher, Fisher
from curvcli.operators.curvature.gauss_newton import GaussNewton
from curvcli.operators.curvature.gram import gram_spectrum

SEED, DRAWS = 3, 2


def products(objective: Objective, g_N: Tensor) -> dict[str, Any]:
    """gᵀAg and ‖Ag‖² of each matrix, and what else is known of them."""
    ranks = objective.ranks
    operators = {
        "ggn": GaussNewton(objective, strategy="keep"),
        "ggn, rebuilt": GaussNewton(objective, strategy="rebuild"),
        "empirical": EmpiricalFisher(objective),
    }
    out: dict[str, Any] = {}
    if objective.splittable:
        fisher = Fisher(objective, draws=DRAWS, seed=SEED)
        out["quadratic"] = list(fisher.quadratic(g_N[None])[0])
        operators["fisher"] = fisher
    for name, operator in operators.items():
        a_g_N = operator.matvec(g_N)
        out[name] = [float(ranks.dot(g_N, a_g_N)), float(ranks.dot(a_g_N, a_g_N))]
    gram = gram_spectrum(operators["ggn"], 200)
    assert gram is not None
    vector_N = gram.vectors(1)
    out["gram"] = {
        "values": gram.values_R[:3].tolist(),
        "rest": [gram.others, gram.rest],
        "trace": float(ranks.over_entries(gram.diagonal().sum())),
        "residual": float(
            ranks.norm(operators["ggn"].matvec(vector_N[0]) - float(gram.values_R[0]) * vector_N[0])
        ),
        "products": float(ranks.norm((gram.products(vector_N) / gram.values_R[0] - vector_N)[0])),
    }
    out["check"] = operators["ggn"].check(g_N)
    return out


def dense(model: nn.Module, batches: list[Batch], decay: float) -> tuple[Tensor, Tensor]:
    """The Gauss-Newton and the empirical Fisher matrix by torch alone."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in named.values()]
    theta_N = torch.cat([p.detach().reshape(-1) for p in named.values()])
    whole = decay * torch.eye(len(theta_N), dtype=theta_N.dtype)
    ggn_NN, fisher_NN = whole.clone(), whole.clone()
    count = sum(batch.size for batch in batches)
    for batch in batches:
        (inputs, _, targets) = batch.data

        def outputs(flat_N: Tensor, inputs: Any = inputs) -> Tensor:
            parts = [x.view_as(p) for x, p in zip(flat_N.split(sizes), named.values(), strict=True)]
            weights: Mapping[str, Tensor] = dict(zip(named, parts, strict=True))
            return torch.as_tensor(torch.func.functional_call(model, dict(weights), inputs))

        z_SM, j_SMN = (
            outputs(theta_N).detach(),
            torch.autograd.functional.jacobian(outputs, theta_N),
        )
        p_SM = z_SM.softmax(1)
        c_SMM = torch.diag_embed(p_SM) - p_SM[:, :, None] * p_SM[:, None, :]
        ggn_NN += torch.einsum("smn,smk,skl->nl", j_SMN, c_SMM, j_SMN) / count
        u_SM = p_SM - nn.functional.one_hot(targets, z_SM.shape[1])
        g_SN = torch.einsum("smn,sm->sn", j_SMN, u_SM)
        fisher_NN += g_SN.T @ g_SN / count
    return ggn_NN, fisher_NN


def check(found: dict[str, Any], objective: Objective, decay: float, g_N: Tensor) -> None:
    """Against dense matrices, and of drawn targets against those of a network that is not divided."""
    ggn_NN, fisher_NN = dense(objective.model, list(objective.batches), decay)
    for name, a_NN in (("ggn", ggn_NN), ("ggn, rebuilt", ggn_NN), ("empirical", fisher_NN)):
        a_g_N = a_NN @ g_N
        np.testing.assert_allclose(
            found[name], [float(g_N @ a_g_N), float(a_g_N @ a_g_N)], rtol=1e-10
        )
    if objective.splittable:
        whole = Fisher(objective, draws=DRAWS, seed=SEED)
        a_g_N = whole.matvec(g_N)
        np.testing.assert_allclose(
            found["fisher"], [float(g_N @ a_g_N), float(a_g_N @ a_g_N)], rtol=1e-10
        )
        # Over all targets the Fisher matrix of logits is the Gauss-Newton matrix.
        assert abs(found["quadratic"][0] / float(g_N @ ggn_NN @ g_N) - 1) < 1e-10
        np.testing.assert_allclose(
            found["quadratic"], list(whole.quadratic(g_N[None])[0]), rtol=1e-10
        )
    values_N = torch.linalg.eigvalsh(ggn_NN).flip(0).numpy()
    gram = found["gram"]
    np.testing.assert_allclose(gram["values"], values_N[:3], rtol=0, atol=1e-12 * values_N[0])
    assert gram["rest"][1] == decay
    assert abs(gram["trace"] / float(ggn_NN.trace()) - 1) < 1e-10
    # Of an eigenvector: rounding of the rows.
    assert max(gram["residual"] / values_N[0], gram["products"]) < 1e-10
    # Central differences of the outputs: the cube root of eps, squared.
    assert found["check"] < 1e-6
