"""What `curvcli gradients` costs beside one plain gradient of the same data.

    python benchmarks/gradients.py [NAME ...]
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from workloads import WORKLOADS, Workload

from curvcli.analyses.context import Context, resolve_target
from curvcli.analyses.gradients import gradients
from curvcli.objective import Batch, Objective
from curvcli.operators.gradient_flow import flow

HERE = Path(__file__).parent
SAMPLES = HERE.parent / "sample_models"


def plain(objective: Objective) -> None:
    for batch in objective.batches:
        total = objective.sum_of(batch)
        torch.autograd.grad(total, objective.parameters, allow_unused=True, materialize_grads=True)


def targets() -> Iterator[tuple[str, Callable[[], Objective]]]:
    for path in sorted(SAMPLES.glob("*.toml")):
        yield path.stem, lambda path=path: sample(path)
    for name in ("resnet20", "gpt"):
        yield name, lambda name=name: workload(WORKLOADS[name]())


def sample(path: Path) -> Objective:
    spec, _ = resolve_target(str(path), {}, ("gradients",))
    context = Context(spec)
    context.accept_nonfinite = True
    return context.objective


def workload(w: Workload) -> Objective:
    batch = Batch(((w.inputs,), {}, w.targets), len(w.targets))
    def terms(model, data):
        (x,), _, y = data
        return w.loss(model(x), y) * len(y), float(len(y))
    return Objective(w.model, [batch], terms)


def median_ratio(objective: Objective, work: Callable[[], object], seconds: float = 3.0) -> tuple[float, float]:
    ratios, bases = [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(ratios) < 5:
        t0 = time.perf_counter()
        plain(objective)
        t1 = time.perf_counter()
        work()
        t2 = time.perf_counter()
        plain(objective)
        t3 = time.perf_counter()
        base = (t1 - t0 + t3 - t2) / 2
        ratios.append((t2 - t1) / base)
        bases.append(base)
    return statistics.median(ratios), statistics.median(bases)


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    for name, make in targets():
        if wanted and name not in wanted:
            continue
        try:
            objective = make()
        except Exception as e:
            print(name, type(e), e)
            continue
        cells = []
        for parts in (1, 4):
            r, base = median_ratio(objective, lambda: flow(objective, parts=parts))
            cells.append(f"flow{parts} {r:.2f}")
        context = Context(objective=objective)
        r, base = median_ratio(objective, lambda: gradients(context))
        print(f"{name:20s} {1e3 * base:8.2f} ms  {'  '.join(cells)}  all {r:.2f}", flush=True)


main()
