"""Where the time of a default `curvcli hessian` goes, stage by stage, in gradients of the same batch.

    python benchmarks/breakdown.py [WORKLOAD …]

A gradient is measured before and after in the same process; the median of three runs is printed. ``planning`` begins
when the model is loaded and the loss known, and ends with the first product of the iteration.
"""

import statistics
import sys
import time

import torch
from engines import TOL
from run import gradient_seconds
from workloads import WORKLOADS, Workload

import curvcli
from curvcli.analyses.shared.journal import Journal, Stage

_RUNS = 3


def stages(workload: Workload) -> dict[str, float]:
    """Seconds in each stage of one run."""
    spent: dict[str, float] = {}
    last = ["making the objective", time.perf_counter()]

    def note(stage: Stage) -> None:
        now = time.perf_counter()
        spent[last[0]] = spent.get(last[0], 0.0) + now - last[1]
        # Progress is told after each product: what comes before the first one belongs to the planning.
        last[:] = [stage.what if stage.done or stage.what != "products" else last[0], now]

    def terms(
        model: torch.nn.Module, data: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, float]:
        inputs, targets = data
        count = float(targets.numel())
        return workload.loss(model(inputs), targets) * count, count

    data = (workload.inputs, workload.targets)
    batch = curvcli.Batch(data, len(workload.targets), workload.splittable)
    subject = curvcli.Subject(objective=curvcli.make_objective(workload.model, [batch], terms))
    curvcli.analyse(
        "hessian",
        subject,
        Journal(progress=note),
        top=workload.wanted,
        bottom=0,
        order="magnitude",
        tol=TOL,
    )
    note(Stage("end", 1, None))
    return spent


def main() -> None:
    """Print a table for each workload."""
    for name in sys.argv[1:] or ["mlp", "resnet20", "gpt"]:
        workload = WORKLOADS[name]()
        workload.gradient()
        stages(workload)
        runs = []
        for _ in range(_RUNS):
            before = gradient_seconds(workload)
            spent = stages(workload)
            unit = (before + gradient_seconds(workload)) / 2
            runs.append({what: seconds / unit for what, seconds in spent.items()})
        print(
            f"\n{workload.title}: {statistics.median(sum(run.values()) for run in runs):.0f} gradients"
        )
        for what in runs[0]:
            print(f"  {what:24} {statistics.median(run.get(what, 0.0) for run in runs):7.1f}")


if __name__ == "__main__":
    main()
