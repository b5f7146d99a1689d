"""One of several processes that ask questions of divided weights, and of the same weights as a whole."""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from curvcli import Batch, Objective, Subject, analyse, make_objective
from curvcli.analyses.lr.optimizers import Setup
from curvcli.analyses.lr.result import Kind
from curvcli.analyses.shared.journal import Journal
from curvcli.linalg.ranks import ALONE, Group, Ranks
from curvcli.loading.loss import loss_terms
from curvcli.loading.processes import Processes
from curvcli.objective.sharding.shards import divide
from curvcli.operators.signals.gradient_flow import flow
from curvcli.operators.signals.ranks import feature_rank, weight_ranks
from curvcli.operators.surface.directions import filter_normalised
from curvcli.operators.surface.rollout import rollout
from tests.distributed.divided import CASES, case

DTYPE = torch.float64
MINIMUM = "minimum"

# Eigenvectors are what several figures hang on: they are found to the last digits.
_EXACT = {"tol": 1e-10}
Asked = list[tuple[str, str, dict[str, Any]]]
SMALL_BATCHES = "decay, batches smaller than the processes are many"
STATISTICS = "batch statistics, batches that may not be cut"
PARTS = "parts of questions"
ASKED: dict[str, Asked] = {
    PARTS: [],
    "one of each": [
        ("saddle", "frozen", _EXACT),
        ("taylor", "frozen", {**_EXACT, "direction": ["gradient", "top"]}),
        ("step", "frozen", {"tol": 1e-11, "method": ["newton", "saddle-free"]}),
        ("landscape", "frozen", {"along": ["gradient"], "points": 5, "refine": 2}),
        ("sharpness", "frozen", {"measure": ["worst", "relative-flatness"]}),
    ],
    "sharpness": [
        ("sharpness", "tied", {}),
        ("sharpness", SMALL_BATCHES, {"measure": ["worst", "fisher-rao", "m-sharpness"]}),
    ],
    "saddle": [("saddle", n, _EXACT) for n in (MINIMUM, "tied", SMALL_BATCHES, STATISTICS)],
    "taylor": [("taylor", "tied", {**_EXACT, "direction": ["gradient", "top", "bottom", "lbfgs"]})],
    # Newton's step of a singular matrix is as right as its condition lets it be: left out there.
    "step": [
        ("step", SMALL_BATCHES, {"tol": 1e-11, "pairs": 45}),
        ("step", "tied", {"tol": 1e-11, "method": ["gradient", "newton-npc", "gauss-newton"]}),
    ],
}


def at_minimum() -> tuple[nn.Module, list[Batch], str, float, bool]:
    """A linear regression at its solution, with noise that no weights explain."""
    torch.manual_seed(3)
    x, y = torch.randn(12, 5, dtype=DTYPE), torch.randn(12, 3, dtype=DTYPE)
    layer = nn.Linear(5, 3, dtype=DTYPE)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(12, 1, dtype=DTYPE)], 1), y).solution
    with torch.no_grad():
        layer.weight.copy_(solution[:5].T)
        layer.bias.copy_(solution[5])
    return nn.Sequential(layer), [Batch(((x,), {}, y), 12)], "mse", 0.0, False


def objective_of(name: str, ranks: Group | None) -> Objective:
    """The network of that name; divided among the processes, if there are any."""
    if name == MINIMUM:
        model, batches, loss, decay, train = at_minimum()
    else:
        model, batches = case(name, DTYPE)
        loss, (_, _, decay, train) = "cross_entropy", CASES[name]
    options: dict[str, Any] = {} if ranks is None else divide(model, ranks).options
    return make_objective(
        model, batches, loss_terms(loss, {}), weight_decay=decay, train_mode=train, **options
    )


def answered(question: str, objective: Objective, options: dict[str, Any], ranks: Ranks) -> Any:
    """The result and the findings, as JSON has them."""
    journal = Journal(agree=ranks.largest)
    answer = analyse(question, Subject(objective=objective), journal, **options)
    return msgspec.to_builtins({"result": answer.result, "findings": answer.findings})


def normalised(ranks: Group) -> dict[str, Any]:
    """A direction by the tensors of the network, and what it is with filters as long as those of the weights."""
    objective = objective_of("tied", ranks)
    torch.manual_seed(4)
    drawn = [torch.randn(held.shape, dtype=DTYPE) for held in objective.tensors]
    direction_N = objective.flat()
    for held, tensor in zip(objective.tensors, drawn, strict=True):
        length = held.own.stop - held.own.start
        direction_N[held.own] = tensor.reshape(-1)[held.first : held.first + length]
    found_N = filter_normalised(objective, direction_N)
    return {
        held.name: [tensor.tolist(), objective.whole(found_N, i).tolist()]
        for i, (held, tensor) in enumerate(zip(objective.tensors, drawn, strict=True))
    }


def trained(ranks: Group | None) -> list[Any]:
    """Losses along short runs, and dead units at their ends."""
    found = []
    kinds: tuple[tuple[str, Kind], ...] = (
        ("tied", "adam"), (SMALL_BATCHES, "momentum"), (STATISTICS, "sgd"),
    )  # fmt: skip
    for name, optimizer in kinds:
        objective = objective_of(name, ranks)
        made = Setup(optimizer, {"momentum": 0.9} if optimizer == "momentum" else {}, {}, 1.0, None)
        before_N = objective.flat()
        course = rollout(objective, partial(made.make, objective), lambda _: 0.05, 7)
        assert torch.equal(before_N, objective.flat())
        found.append([course.losses, course.dead and course.dead.fraction])
    return found


def health(ranks: Group | None) -> list[Any]:
    """Noise of the gradient, ranks of weights and features."""
    objective = objective_of("tied", ranks)
    grams = flow(objective_of(SMALL_BATCHES, ranks), details=False).gram_TPP
    return [
        torch.stack(grams or []).sum(0).tolist(),
        weight_ranks(objective, 100),
        feature_rank(objective),
    ]


def main() -> None:
    """Called with the folder to write to and what is asked."""
    torch.set_num_threads(1)
    processes = Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    ranks, found = processes.ranks, []
    for question, name, options in ASKED[sys.argv[2]]:
        one = answered(question, objective_of(name, None), options, ALONE)
        divided = answered(question, objective_of(name, ranks), options, ranks)
        found.append({"one": one, "divided": divided})
    told: dict[str, Any] = {"answers": found}
    if sys.argv[2] == PARTS:
        told["filters"] = normalised(ranks)
        told["runs"] = {"one": trained(None), "divided": trained(ranks)}
        told["health"] = {"one": health(None), "divided": health(ranks)}
    processes.leave()
    (Path(sys.argv[1]) / f"{ranks.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
