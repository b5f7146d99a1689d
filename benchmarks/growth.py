"""How time and memory of `curvcli hessian` grow with parameters, samples and eigenvalues asked for.

    python benchmarks/growth.py

Each point is a process of its own, on a multilayer perceptron with random data: seconds and gradients of the run,
bytes of tensors at their peak. Writes ``growth.md`` and ``growth.png`` (log axes) with the exponent of each curve, by
least squares on the logarithms of its upper half.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
# (width, samples, eigenvalues) of the middle of all three curves.
WIDTH, SAMPLES, K = 512, 512, 10
CURVES = {
    "parameters": [(w, 256, K) for w in (64, 128, 256, 512, 1024, 2048)],
    "samples": [(128, s, K) for s in (256, 512, 1024, 2048, 4096, 8192)],
    "eigenvalues": [(256, SAMPLES, k) for k in (5, 10, 20, 40, 80, 160)],
}


def point(width: int, samples: int, k: int) -> dict[str, float]:
    """One run, in this process."""
    import torch
    from torch import nn

    import curvcli
    from curvcli import analyse
    from curvcli.analyses.hessian.result import HessianResult
    from curvcli.loading.loss import loss_terms
    from curvcli.machine.meter import MemoryMeter

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10)
    )
    x, y = torch.randn(samples, 64), torch.randint(0, 10, (samples,))

    def run() -> tuple[HessianResult, curvcli.Objective]:
        batch = curvcli.Batch(((x,), {}, y), samples)
        objective = curvcli.make_objective(model, [batch], loss_terms("cross_entropy", {}))
        subject = curvcli.Subject(objective=objective)
        return analyse(
            "hessian", subject, top=k, bottom=0, tol=1e-2, max_matvecs=2000
        ).result, objective

    run()
    start = time.perf_counter()
    result, objective = run()
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(5):
        objective.gradient()
    gradient = (time.perf_counter() - start) / 5
    with MemoryMeter() as meter:
        run()
    return {
        "parameters": objective.n,
        "samples": samples,
        "eigenvalues": k,
        "seconds": seconds,
        "gradients": seconds / gradient,
        "bytes": meter.peak,
        "products": objective.cost.matvecs,
        "basis": result.basis,
        "restarts": result.restarts,
    }


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of log y against log x over the upper half of the points."""
    half = len(x) // 2
    return float(np.polyfit(np.log(x[half:]), np.log(y[half:]), 1)[0])


def draw(curves: dict[str, list[dict[str, float]]]) -> list[str]:
    """``growth.png``, and the exponents as rows of a table."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    figure, axes = pyplot.subplots(2, 3, figsize=(12, 7), layout="constrained")
    slopes = ["| against | time | memory |", "|:---|---:|---:|"]
    for column, (name, found) in enumerate(curves.items()):
        x = [p[name] for p in found]
        exponents = []
        for row, (key, label) in enumerate((("seconds", "seconds"), ("bytes", "bytes of tensors"))):
            y = [p[key] for p in found]
            exponents.append(exponent(x, y))
            axes[row][column].loglog(x, y, "o-", color="#2e8b57")
            axes[row][column].set_title(f"{label} ~ {name}^{exponents[-1]:.2f}", fontsize=10)
            axes[row][column].set_xticks(x, [f"{v:,}" for v in x], fontsize=8)
            axes[row][column].xaxis.set_minor_formatter(NullFormatter())
            axes[row][column].grid(visible=True, which="both", alpha=0.25)
        slopes.append(f"| {name} | {exponents[0]:.2f} | {exponents[1]:.2f} |")
    figure.savefig(HERE / "growth.png", dpi=90, metadata={"Software": "curvcli"})
    return slopes


def main() -> None:
    """All points, the table and the plot."""
    lines = [
        "| curve | parameters | samples | k | seconds | gradients | peak of tensors | products | basis | restarts |",
        "|:---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    curves: dict[str, list[dict[str, float]]] = {}
    for name, points in CURVES.items():
        curves[name] = []
        for arguments in points:
            done = subprocess.run(
                [sys.executable, __file__, *map(str, arguments)],
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            p = json.loads(done.stdout)
            curves[name].append(p)
            lines.append(
                f"| {name} | {p['parameters']:,} | {p['samples']:,} | {p['eigenvalues']} | {p['seconds']:.2f} | "
                f"{p['gradients']:.0f} | {p['bytes'] / 1e6:.0f} MB | {p['products']} | {p['basis']} | {p['restarts']} |"
            )
            print(lines[-1], flush=True)
    slopes = draw(curves)
    text = "\n".join([time.strftime("Measured on %Y-%m-%d, one thread."), "", *slopes, "", *lines])
    (HERE / "growth.md").write_text(text + "\n")
    print("\n".join(slopes))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(point(*map(int, sys.argv[1:]))))
    else:
        main()
