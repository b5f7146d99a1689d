"""What `curvcli gradients` costs beside one plain gradient of the same data: time, memory, number of modules.

    python benchmarks/gradients.py [NAME ...]

Time: medians of pairs measured in turn in one process, one thread. Memory: bytes of tensors alive at the peak, beside
what is there before. Writes ``gradients.md`` beside this file where no name is given.
"""

import gc
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from workloads import WORKLOADS, Workload

from curvcli import Subject, analyse
from curvcli.analyses.shared.settings import resolve_target
from curvcli.loading.loss import loss_terms
from curvcli.machine.meter import MemoryMeter
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective
from curvcli.objective.objective import Objective
from curvcli.operators.signals.gradient_flow import flow

HERE = Path(__file__).parent
SAMPLES = HERE.parent / "sample_models"
SECONDS = 1.5
MODULES = (1000, 3000, 10000)


def plain(objective: Objective) -> None:
    """What ``loss.backward()`` computes."""
    for batch in objective.batches:
        total = objective.sum_of(batch)
        torch.autograd.grad(total, objective.parameters, allow_unused=True, materialize_grads=True)


def bare_hooks(objective: Objective) -> None:
    """The same, with hooks that do nothing on every module and every output's gradient: the floor."""

    def before(_module: nn.Module, _inputs: Any) -> None:
        return None

    def after(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(lambda _: None)

    handles = []
    for module in objective.model.modules():
        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))
    plain(objective)
    for handle in handles:
        handle.remove()


def sample(path: Path) -> Objective:
    """A sample model."""
    spec, _ = resolve_target(str(path), {}, ("gradients",))
    return Subject(spec).objective


def workload(w: Workload) -> Objective:
    """A network of the other benchmarks."""

    def terms(model: nn.Module, data: Any) -> tuple[torch.Tensor, float]:
        (x,), _, y = data
        return w.loss(model(x), y) * len(y), float(len(y))

    return make_objective(w.model, [Batch(((w.inputs,), {}, w.targets), len(w.targets))], terms)


def in_gradients(objective: Objective, work: Callable[[], object]) -> tuple[float, float]:
    """Median time of ``work`` over that of a plain gradient before and after it, and the latter in seconds."""
    ratios, bases = [], []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(ratios) < 5:
        times = [time.perf_counter()]
        for step in (plain, None, plain):
            if step is None:
                work()
            else:
                step(objective)
            times.append(time.perf_counter())
        first, own, last = (b - a for a, b in itertools.pairwise(times))
        bases.append((first + last) / 2)
        ratios.append(own / bases[-1])
    return statistics.median(ratios), statistics.median(bases)


def peak(work: Callable[[], object]) -> int:
    """Bytes of tensors alive at the same time that ``work`` made."""
    gc.collect()
    with MemoryMeter() as meter:
        work()
    return meter.peak


def row(name: str, objective: Objective) -> str:
    """One network."""
    subject = Subject(objective=objective)
    cells = [name]
    floor, base = in_gradients(objective, partial(bare_hooks, objective))
    cells += [f"{1e3 * base:.2f} ms", f"{floor:.2f}"]
    for parts in (1, 2, 4):
        ratio, _ = in_gradients(objective, partial(flow, objective, parts=parts))
        cells.append(f"{ratio:.2f}")
    ratio, _ = in_gradients(objective, partial(analyse, "gradients", subject))
    cells.append(f"{ratio:.2f}")
    least = peak(partial(plain, objective))
    cells.append(f"{least / 1e6:.1f} MB")
    cells += [
        f"{peak(work) / least:.2f}"
        for work in (partial(flow, objective, parts=1), partial(analyse, "gradients", subject))
    ]
    return f"| {' | '.join(cells)} |"


def chain(modules: int) -> str:
    """A chain of so many layers of four units: time of a module, in the pass and in all."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(modules)))
    for layer in model:
        nn.init.orthogonal_(layer.get_parameter("weight"))
    data = ((torch.randn(8, 4),), {}, torch.randn(8, 4))
    objective = make_objective(model, [Batch(data, 8)], loss_terms("mse", {}))
    times = []
    for work in (
        partial(plain, objective),
        partial(analyse, "gradients", Subject(objective=objective)),
    ):
        started = time.perf_counter()
        work()
        times.append(1e6 * (time.perf_counter() - started) / modules)
    return f"| {modules:,} | {times[0]:.0f} µs | {times[1]:.0f} µs |"


def main() -> None:
    """All networks, or those named."""
    torch.set_num_threads(1)
    made: dict[str, Callable[[], Objective]] = {
        path.stem: partial(sample, path) for path in sorted(SAMPLES.glob("*.toml"))
    }
    made |= {name: lambda name=name: workload(WORKLOADS[name]()) for name in ("resnet20", "gpt")}  # type: ignore[misc]
    lines = [
        f"Measured on {datetime.now(UTC):%Y-%m-%d} with torch {torch.__version__}, one thread.\n",
        "| network | gradient | bare hooks | 1 part | 2 parts | 4 parts | whole analysis | peak | 1 part | whole |",
        "|:---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(lines))
    for name in sys.argv[1:] or made:
        lines.append(row(name, made[name]()))
        print(lines[-1], flush=True)
    if sys.argv[1:]:
        return
    lines += ["", "| modules | gradient, each | whole analysis, each |", "|---:|---:|---:|"]
    for modules in MODULES:
        lines.append(chain(modules))
        print(lines[-1], flush=True)
    (HERE / "gradients.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
