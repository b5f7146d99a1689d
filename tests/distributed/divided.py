"""One of several processes that divide weights and vectors: what it finds on every case, in no order of entries."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from curvcli import Batch, Objective, make_objective
from curvcli.files import write_nothing
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.loading.checkpoints.formats import open_checkpoint
from curvcli.loading.loss import loss_terms
from curvcli.loading.models.divided import load_divided
from curvcli.loading.processes import Processes
from curvcli.objective.sharding.shards import divide, without_weights
from curvcli.operators.curvature.hessian import Hessian
from tests.distributed import layers
from tests.distributed.files import logs, states
from tests.distributed.matrices import products


class Tied(nn.Module):
    """Blocks in a list, one matrix in two of them, and one of the network's own used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 5)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(3))
        first, _, last = (next(iter(block.children())) for block in self.blocks)
        last.weight = first.weight
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(self.embed(x))
        for block in self.blocks:
            x = x + block(x)
        return torch.as_tensor(self.head(x))


class Recurrent(nn.Module):
    """An LSTM over five steps of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.lstm(x[..., None])[0][:, -1]))


def mlp() -> nn.Sequential:
    """Layers of a Sequential are blocks."""
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def frozen() -> nn.Sequential:
    """Half of it needs no gradient, and is divided all the same."""
    made = mlp()
    made[0].requires_grad_(False)
    return made


CASES: dict[str, tuple[Any, list[int], float, bool]] = {
    "mlp": (mlp, [9], 0.0, False),
    "decay, batches smaller than the processes are many": (mlp, [1, 3, 5], 0.1, False),
    "tied": (Tied, [6], 0.0, False),
    "frozen": (frozen, [7], 0.0, False),
    "recurrent": (Recurrent, [5], 0.0, False),
    "batch statistics, batches that may not be cut": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)),
        [6, 5, 7, 4, 6],
        0.0,
        True,
    ),
}

# Cases that differ for other matrices, and for layers: samples of weight zero, ties, samples that are coupled.
MATRICES = [name for name in CASES if name.split(",")[0] in ("decay", "tied", "batch statistics")]
LAYERS = MATRICES[:2]


def case(name: str, dtype: torch.dtype) -> tuple[nn.Module, list[Batch]]:
    """The network and the data of that name."""
    torch.manual_seed(1)
    make, sizes, _, _ = CASES[name]
    model = make().to(dtype)
    return model, [
        Batch(((torch.randn(s, 5).to(dtype),), {}, torch.randint(3, (s,))), s) for s in sizes
    ]


def objective_of(processes: Processes, name: str, dtype: torch.dtype) -> Objective:
    """The loss of a case, of divided weights."""
    model, batches = case(name, dtype)
    shards = divide(model, processes.ranks)
    _, _, decay, train = CASES[name]
    return make_objective(
        model, batches, loss_terms("cross_entropy", {}), weight_decay=decay, train_mode=train,
        **shards.options,
    )  # fmt: skip


def figures(processes: Processes, name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Loss, scalar products of g and H g with each other, leading eigenvalues, and what was sent."""
    objective = objective_of(processes, name, dtype)
    model, batches, ranks = objective.model, objective.batches, objective.ranks
    before_N = objective.flat()
    out: dict[str, Any] = {
        "loss": objective.value(2 if objective.splittable else None),
        "n": objective.n,
        "length": objective.length,
    }
    for strategy in ("keep", "rebuild"):
        operator = Hessian(objective, strategy=strategy)
        g_N = operator.gradient
        sent = ranks.traffic.bytes
        product_N = operator.matvec(g_N)
        sent = ranks.traffic.bytes - sent
        out[strategy] = [
            float(ranks.dot(*pair))
            for pair in ((g_N, g_N), (g_N, product_N), (product_N, product_N))
        ]
        if strategy == "keep":
            whole = sum(p.numel() for p in model.parameters()) * ranks.size * g_N.element_size()
            out["sent"] = sent / len(batches) / (whole * (ranks.size - 1) / ranks.size)
    out["check"] = operator.check(g_N)
    tol = 1e-4 if dtype == torch.float32 else 1e-9
    found = lanczos(Hessian(objective), Wanted(top=3, bottom=1), tol=tol)
    out["values"] = found.values_K.tolist()
    out["vector"] = {
        held.name: objective.whole(found.vectors_KN[0], i).tolist()
        for i, held in enumerate(objective.tensors)
    }
    if dtype == torch.float64 and name in MATRICES:
        out["matrices"] = products(objective, g_N)
    if dtype == torch.float64 and name in LAYERS:
        out["layers"] = layers.figures(objective, g_N)
    out["restored"] = torch.equal(before_N, objective.flat())
    return out


def reading(processes: Processes, folder: Path) -> dict[str, int]:
    """Entries read from a file by this process, entries it holds, and entries there are."""
    path = folder / f"{processes.ranks.rank}.safetensors"
    model, _ = case("tied", torch.float32)
    save_file({n: p.detach().clone() for n, p in model.named_parameters()}, path)
    with without_weights():
        unfilled = Tied()
    checkpoint = open_checkpoint(path)
    read, part = 0, checkpoint.part

    def counted(name: str, first: int, last: int) -> Tensor:
        nonlocal read
        read += last - first
        return part(name, first, last)

    checkpoint.part = counted  # type: ignore[method-assign]
    shards, _ = load_divided(unfilled, checkpoint, processes.ranks)
    held = sum(p.numel() for p in unfilled.parameters())
    sums = [float(p.detach().sum()) for p in unfilled.parameters()]
    (total,) = processes.ranks.totals(sum(sums))
    wanted = sum(float(p.detach().sum()) for p in model.parameters())
    return {
        "read": read,
        "held": held,
        "n": shards.ranks.dimension(held),
        "right": abs(total - wanted) < 1e-4,
    }


def main() -> None:
    """Called with the folder to write to."""
    torch.set_num_threads(1)
    processes = Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    folder = Path(sys.argv[1])
    if not processes.first:
        write_nothing()
    found: dict[str, Any] = {
        f"{name}, {dtype}": figures(processes, name, dtype)
        for name in CASES
        for dtype in (torch.float64, torch.float32)
    }
    found["reading"] = reading(processes, folder)
    found["state"] = states(objective_of(processes, "tied", torch.float64), folder / "state")
    found["log"] = logs(objective_of(processes, "frozen", torch.float64), folder / "log")
    rank = processes.ranks.rank
    processes.leave()
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
