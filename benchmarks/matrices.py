"""What one product with each curvature matrix costs, in gradients of the same batch.

Graphs are kept; one thread; medians over rounds in which the gradient and every product are measured in turn.
"""

import statistics
import time
from collections.abc import Callable

import torch
from workloads import Workload, digits_mlp, gpt, resnet20

from curvcli.loading.loss import loss_terms
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.matrices import curvature

MATRICES = ("hessian", "ggn", "fisher", "empirical-fisher")
ROUNDS = 15


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(workload: Workload) -> dict[str, float]:
    """Median over the rounds of (time of a product) / (time of a gradient)."""
    batch = Batch(((workload.inputs,), {}, workload.targets), len(workload.inputs))
    objective = make_objective(workload.model, [batch], loss_terms("cross_entropy", {}))
    operators: dict[str, Curvature] = {
        m: curvature(objective, m, strategy="keep") for m in MATRICES
    }
    v_N = torch.randn(objective.n, generator=torch.Generator().manual_seed(0))
    ratios: dict[str, list[float]] = {m: [] for m in MATRICES}
    for round_ in range(ROUNDS + 2):
        gradient = timed(workload.gradient)
        for name, operator in operators.items():
            seconds = timed(lambda operator=operator: operator.matvec(v_N))
            if round_ >= 2:  # graphs are built and caches are warm
                ratios[name].append(seconds / gradient)
    return {name: statistics.median(values) for name, values in ratios.items()}


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"| workload | {' | '.join(MATRICES)} |\n|---|{'---:|' * len(MATRICES)}")
    for make in (digits_mlp, lambda: resnet20(16), lambda: gpt(4)):
        workload = make()
        found = measure(workload)
        print(f"| {workload.title} | {' | '.join(f'{found[m]:.2f}' for m in MATRICES)} |")


if __name__ == "__main__":
    main()
