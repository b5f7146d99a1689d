"""The loss over a plane through ResNet-20, in turns with the package loss-landscapes at the same places.

pip install loss-landscapes; python benchmarks/landscape.py [turns [samples]]. One thread. The plane is spanned by two
random directions, filter-normalised (Li et al. 2018) and orthogonal. Running statistics of BatchNorm are those of the
data and stay as they are, as the peer leaves them. curvcli adds sampling errors, accuracies, the quadratic model with
its checks and the barriers between the checkpoints; what a place more costs is told by two grids.

The peer walks over the grid row by row, forth and back, and takes a step before each evaluation: its rows lie one place
apart from each other in turns, which is allowed for here.
"""

import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path

import loss_landscapes
import numpy as np
import torch
from loss_landscapes.metrics import Loss
from safetensors.torch import save_file
from torch import Tensor, nn
from workloads import Workload, resnet20

import curvcli

GRIDS, HALF = (6, 12), 0.25
"""Steps along each direction, of both grids, and how far they go beyond the ends; 0 is one of the places."""
SIZE = 0.3
"""Of the directions, in lengths of the weights."""


def settled(work: Workload) -> Workload:
    """With running statistics of the data."""
    for module in work.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        work.model.train()(work.inputs)
    work.model.eval()
    return work


def directions(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Two of them, filter by filter as long as the weights times `SIZE`; biases and normalisations stay."""
    torch.manual_seed(1)
    found = []
    for _ in range(2):
        one = []
        for p in model.parameters():
            d = torch.randn_like(p) if p.dim() > 1 else torch.zeros_like(p)
            for filter_, weight in zip(d, p.detach(), strict=True):
                if p.dim() > 1:
                    filter_.mul_(SIZE * weight.norm() / filter_.norm())
            one.append(d)
        found.append(one)
    u, v = found
    share = sum(float((a * b).sum()) for a, b in zip(u, v, strict=True)) / sum(
        float((a * a).sum()) for a in u
    )
    return u, [b - share * a for a, b in zip(u, v, strict=True)]


def at(model: nn.Module, *steps: tuple[float, list[Tensor]]) -> nn.Module:
    """The model with other weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for length, direction in steps:
            for p, d in zip(other.parameters(), direction, strict=True):
                p.add_(d, alpha=length)
    return other


def ours(work: Workload, files: list[str], steps: int) -> tuple[float, np.ndarray]:
    """(seconds, losses) of all places of the grid; sampling errors and the quadratic model too."""
    began = time.perf_counter()
    answer = curvcli.landscape(
        work.model, "cross_entropy", (work.inputs, work.targets), to=files, points=steps + 1, radius=HALF,
        norm_statistics="keep", refine=0,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    grid = answer.result.map
    assert grid is not None
    return seconds, np.array(grid.loss, dtype=float)


def theirs(
    work: Workload, u: list[Tensor], v: list[Tensor], steps: int
) -> tuple[float, np.ndarray]:
    """(seconds, losses): row i is a place of u, column j one of v."""
    whole = 1 + 2 * HALF
    corner = at(work.model, (-HALF, u), (-HALF, v))
    ends = at(corner, (whole, u)), at(corner, (whole, v))
    metric = Loss(nn.CrossEntropyLoss(), work.inputs, work.targets)
    began = time.perf_counter()
    losses = loss_landscapes.planar_interpolation(corner, *ends, metric, steps, deepcopy_model=True)
    return time.perf_counter() - began, losses


def compared(own: np.ndarray, peer: np.ndarray) -> tuple[float, float]:
    """Largest relative difference at the places where the peer was, and at those that its grid has."""
    steps = len(peer)
    # Even rows of the peer begin one place further on than odd ones.
    same = np.array([own.T[i, 1:] if i % 2 == 0 else own.T[i, :-1] for i in range(steps)])
    return abs(same / peer - 1).max(), abs(own.T[:steps, :steps] / peer - 1).max()


def main() -> None:
    """Print times and differences."""
    torch.set_num_threads(1)
    work = settled(resnet20(int(sys.argv[2]) if len(sys.argv) > 2 else 64))
    u, v = directions(work.model)
    times: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{name}.safetensors") for name in "ab"]
        for file, direction in zip(files, (u, v), strict=True):
            save_file(at(work.model, (1.0, direction)).state_dict(), file)
        for steps in GRIDS * (int(sys.argv[1]) if len(sys.argv) > 1 else 2):
            seconds, own = ours(work, files, steps)
            times.setdefault(("curvcli", (steps + 1) ** 2), []).append(seconds)
            seconds, peer = theirs(work, u, v, steps)
            times.setdefault(("loss-landscapes", steps**2), []).append(seconds)
            there, named = compared(own, peer)
            print(
                f"{steps} steps: losses {peer.min():.3f} to {peer.max():.3f}; largest relative difference {there:.1e}; "
                f"at the places of the peer's grid {named:.1e}",
                flush=True,
            )
    for name in ("curvcli", "loss-landscapes"):
        medians = {n: statistics.median(found) for (who, n), found in times.items() if who == name}
        (few, quick), (many, slow) = medians.items()
        told = ", ".join(f"{n} places {seconds:.1f} s" for n, seconds in medians.items())
        print(f"{name:<16} {told}; a place more {1000 * (slow - quick) / (many - few):.0f} ms")


if __name__ == "__main__":
    main()
