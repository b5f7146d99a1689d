"""What all diagonal blocks cost against the whole Hessian, at the same number of Lanczos steps.

    python benchmarks/layers.py [STEPS]

Prints, for networks of 20 layers, the time of the Lanczos runs on all blocks together in times of one run on the whole
Hessian, and the same for products alone. Both run in one process on the same kept graph, in turn.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from curvcli.linalg.lanczos.factorization import start
from curvcli.linalg.lanczos.lanczos import lanczos, lanczos_by_request
from curvcli.linalg.lanczos.lockstep import lockstep
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.loading.loss import loss_terms
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective
from curvcli.operators.curvature.diagonal_blocks import DiagonalBlocks, blocks_of
from curvcli.operators.curvature.hessian import Hessian

LAYERS, REPEATS = 20, 3


def mlp(width: int, activation: Callable[[], nn.Module]) -> nn.Module:
    """20 linear layers on 64 features, 10 classes."""
    sizes = [64, *[width] * (LAYERS - 1), 10]
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


def cnn(channels: int) -> nn.Module:
    """19 convolutions that halve the image and double the channels twice, and a classifier."""
    layers: list[nn.Module] = []
    present = 3
    for i in range(LAYERS - 1):
        wide = channels * 2 ** (i // 7)
        layers += [nn.Conv2d(present, wide, 3, 2 if i in (7, 14) else 1, 1), nn.ReLU()]
        present = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(present, 10))


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(name: str, model: nn.Module, x: torch.Tensor, steps: int) -> str:
    """One line of the table."""
    y = torch.randint(0, 10, (len(x),))
    batch = Batch(((x,), {}, y), len(x))
    objective = make_objective(model, [batch], loss_terms("cross_entropy", {}))
    operator = Hessian(objective, strategy="keep")
    blocks = DiagonalBlocks(operator, blocks_of(objective, "layer"))

    def whole() -> None:
        lanczos(operator, Wanted(1, 1), tol=1e-300, max_matvecs=steps, recheck=0)

    def layers() -> None:
        runs = [
            lanczos_by_request(
                b, Wanted(1, 1), state=start(b, 200, i), tol=1e-300, max_matvecs=steps, recheck=0
            )
            for i, b in enumerate(blocks.blocks)
        ]
        lockstep(runs, blocks.products)

    v_N = torch.randn(operator.n)
    parts = blocks.cut(v_N)
    runs, products = [], []
    for _ in range(REPEATS):
        one, all_ = seconds(whole), seconds(layers)
        runs.append(all_ / one)
        few = [seconds(lambda: operator.matvec(v_N)) for _ in range(5)]
        many = [seconds(lambda: blocks.products(parts)) for _ in range(5)]
        products.append(statistics.median(many) / statistics.median(few))
    return (
        f"{name:<28} {operator.n:>9,} {statistics.median(runs):6.2f} "
        f"({min(runs):.2f} to {max(runs):.2f}) {statistics.median(products):6.2f} "
        f"({min(products):.2f} to {max(products):.2f})"
    )


def main() -> None:
    """Measure networks of 20 layers."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, {steps} steps, {REPEATS} repeats")
    print("20 layers                    parameters   run, times the whole   product")
    for name, model, x in (
        ("tanh 512, batch 512", mlp(512, nn.Tanh), torch.randn(512, 64)),
        ("GELU 512, batch 128", mlp(512, nn.GELU), torch.randn(128, 64)),
        ("ReLU 128, batch 256", mlp(128, nn.ReLU), torch.randn(256, 64)),
        ("sigmoid 32, batch 256", mlp(32, nn.Sigmoid), torch.randn(256, 64)),
        ("convolutions, 16x16 images", cnn(16), torch.randn(32, 3, 16, 16)),
    ):
        print(measure(name, model, x, steps), flush=True)


if __name__ == "__main__":
    main()
