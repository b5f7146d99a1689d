"""How much of a Lanczos run is work on vectors, and what a product costs.

    python benchmarks/vectors.py [WORKLOAD ...]

For each workload, in gradients of the same batch: the median product of a run, which is one on the kept graph, and
the mean, with the building of the graph; and the share of the time of the iteration that is not spent in products
(orthogonalisation, Ritz pairs, Python). Medians of three runs.
"""

import statistics
import sys
import time
from typing import Any

import torch
from engines import run_curvcli
from run import gradient_seconds
from workloads import WORKLOADS

from curvcli.linalg.lanczos import lanczos as engine
from curvcli.operators.curvature.hessian import Hessian


class Stopwatch:
    """Measures the calls of a function."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.times: list[float] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        started = time.perf_counter()
        try:
            return self._function(*args, **kwargs)
        finally:
            self.times.append(time.perf_counter() - started)


def measure(name: str) -> tuple[float, float, float]:
    """(median and mean gradients for a product, share of vector work)."""
    workload = WORKLOADS[name]()
    run_curvcli(workload, recheck=0, spread=0)
    medians, means, shares = [], [], []
    for _ in range(3):
        unit = gradient_seconds(workload)
        matvec, step = Stopwatch(Hessian.matvec), Stopwatch(engine.step)
        ritz = Stopwatch(engine.ritz)
        originals = Hessian.matvec, engine.step, engine.ritz
        Hessian.matvec = lambda self, v_N, m=matvec: m(self, v_N)  # type: ignore[method-assign]
        engine.step, engine.ritz = step, ritz
        try:
            run_curvcli(workload, recheck=0, spread=0)
        finally:
            Hessian.matvec, engine.step, engine.ritz = originals  # type: ignore[method-assign]
        medians.append(statistics.median(matvec.times) / unit)
        means.append(statistics.mean(matvec.times) / unit)
        vectors = sum(step.times) + sum(ritz.times)
        shares.append(vectors / (vectors + sum(matvec.times)))
    return statistics.median(medians), statistics.median(means), statistics.median(shares)


def main() -> None:
    """Measure the workloads."""
    print(f"{torch.get_num_threads()} threads")
    for name in sys.argv[1:] or WORKLOADS:
        median, mean, share = measure(name)
        print(
            f"{name:<10} product {median:.2f}, with its graph {mean:.2f} gradients   vectors {share:.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
