"""One of several processes: runs every case on its share of the data, and writes what it found and what it sent."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curvcli import Batch, Objective, make_objective
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.loading.loss import loss_terms
from curvcli.operators.curvature.diagonal_blocks import DiagonalBlocks, blocks_of
from curvcli.operators.curvature.fisher import Fisher
from curvcli.operators.curvature.gauss_newton import GaussNewton
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.curvature.parts import part_gradients
from curvcli.operators.curvature.spread import spread


class Tied(nn.Module):
    """One matrix twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(torch.tanh(self.first(x))))
        return torch.as_tensor(self.head(h))


def objectives(ranks: Ranks) -> dict[str, Objective]:
    """Networks and data of many kinds."""
    made = {}
    for name, dtype, sizes, weight_decay, model in (
        ("mlp float32", torch.float32, [13], 0.0, "mlp"),
        ("mlp float64", torch.float64, [13], 0.0, "mlp"),
        ("decay", torch.float64, [9, 4, 5], 0.1, "mlp"),
        ("tied", torch.float64, [7], 0.0, "tied"),
        ("ignored", torch.float64, [12], 0.0, "ignored"),
        ("statistics", torch.float64, [6, 5, 7, 4, 8], 0.0, "norm"),
    ):
        torch.manual_seed(1)
        net: nn.Module = Tied() if model == "tied" else nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8) if model == "norm" else nn.Identity(), nn.Tanh(), nn.Linear(8, 3),
        )  # fmt: skip
        batches = []
        for size in sizes:
            y = torch.randint(3, (size,))
            if model == "ignored":
                y[::3] = -100
            batches.append(Batch(((torch.randn(size, 6, dtype=dtype),), {}, y), size))
        made[name] = make_objective(
            net.to(dtype), batches, loss_terms("cross_entropy", {}), weight_decay=weight_decay,
            train_mode=model == "norm", ranks=ranks,
        )  # fmt: skip
    return made


def figures(objective: Objective) -> dict[str, Any]:
    """What is summed over the data, by every kind of product."""
    ranks = objective.ranks
    operator = Hessian(objective)
    before = (ranks.traffic.messages, ranks.traffic.bytes)
    tol = 1e-4 if objective.dtype == torch.float32 else 1e-8
    found = lanczos(operator, Wanted(4, 3), tol=tol, seed=3, capacity=12)
    sent = (ranks.traffic.messages - before[0], ranks.traffic.bytes - before[1])
    v_N = torch.linspace(-1, 1, operator.n, dtype=objective.dtype)
    blocks = DiagonalBlocks(operator, blocks_of(objective, by="layer"))
    spreads = spread(operator, found.vectors_KN, 4)
    out = {
        "values": found.values_K.tolist(),
        "gradient": operator.gradient.tolist(),
        "loss": objective.value(),
        "product": operator.matvec(v_N).tolist(),
        "check": operator.check(v_N),
        "difference": operator.difference_product(v_N).tolist(),
        "blocks": [x.tolist() for x in blocks.products(blocks.cut(v_N)) if x is not None],
        "spread": spreads.standard_errors_K,
        "parts": [weight for weight, _ in part_gradients(operator)],
        "rebuilt": Hessian(objective, strategy="rebuild").matvec(v_N).tolist(),
        "ggn": GaussNewton(objective).matvec(v_N).tolist(),
    }
    if objective.splittable:
        fisher = Fisher(objective, draws=2)
        out["fisher"] = fisher.matvec(v_N).tolist()
        out["quadratic"] = [list(q) for q in fisher.quadratic(v_N[None])]
    return {"figures": out, "sent": sent, "products": found.matvecs, "n": operator.n}


def main() -> None:
    """Called with the file to write to."""
    torch.set_num_threads(1)
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    processes = None
    if size > 1:
        from curvcli.loading.processes import Processes

        processes = Processes(rank, size)
    ranks = ALONE if processes is None else processes.ranks
    found = {name: figures(objective) for name, objective in objectives(ranks).items()}
    if processes is not None:
        processes.leave()
    Path(f"{sys.argv[1]}.{rank}").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
