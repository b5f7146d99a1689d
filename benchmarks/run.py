"""curvcli and its peers side by side: time in gradients, accuracy, products and memory.

    python benchmarks/run.py [--repeats N] [--threads N] [--without ENGINE …] [WORKLOAD …]

Each engine finds the ten eigenvalues of largest magnitude to 1e-3 (three of GPT-2). Times are divided by that of one
gradient of the same batch, measured before and after each run in the same process; engines take turns, medians and
ranges are given. The error is the largest relative one against float64 and 1e-6 (ARPACK). Memory is the growth of the
resident set over the loaded workload, in a process of its own for each engine that is not too slow for that. Writes
``results.json`` and ``results.md`` beside this file; rows of other workloads, of the same torch and threads, stay with
their date.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from engines import ENGINES, TOL, reference
from workloads import CACHE, WORKLOADS, Workload

from curvcli.machine.device import peak_memory, used_memory

HERE = Path(__file__).parent
# Beyond so many gradients an engine is measured once only.
_LONG = 400.0
# Where a gradient is quicker than this, in seconds, the first call of an engine is mostly imports.
_QUICK = 0.02
# Where it is slower, no second run is made for the memory alone.
_SLOW = 2.0


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def gradient_seconds(workload: Workload) -> float:
    """Median time of a gradient, over at least five of them and a tenth of a second."""
    times = [seconds(workload.gradient) for _ in range(5)]
    while sum(times) < 0.1:
        times.append(seconds(workload.gradient))
    return statistics.median(times)


def truth(name: str) -> list[float] | None:
    """The reference values, kept in the cache: they take minutes. None where they do not fit in memory."""
    if not WORKLOADS[name]().referenced:
        return None
    path = CACHE / f"reference-{name}.json"
    if not path.exists():
        values = reference(WORKLOADS[name]())
        CACHE.mkdir(exist_ok=True)
        path.write_text(json.dumps(values))
    values = json.loads(path.read_text())
    assert isinstance(values, list)
    return values


def error(values: list[float], exact: list[float]) -> float:
    """Largest relative error, pair by pair in order of magnitude."""
    ordered = sorted(values, key=abs, reverse=True)
    return max(abs(v - t) / abs(t) for v, t in zip(ordered, exact, strict=True))


def right_steps(name: str, workload: Workload, exact: list[float]) -> int:
    """Lanczos steps with which the fastest peer is right to the tolerance, kept in the cache: the search takes minutes.

    The smallest number, in fours, from twelve fewer than curvcli's products on.
    """
    path = CACHE / f"steps-{name}.json"
    if not path.exists():
        _, products = ENGINES["curvcli --recheck 0 --spread 0"](workload, 0)
        steps = max(20, (products - 12) // 4 * 4)
        while error(ENGINES["hessian-eigenthings, steps given"](workload, steps)[0], exact) > TOL:
            steps += 4
        path.write_text(json.dumps(steps))
    return int(json.loads(path.read_text()))


def measure(name: str, repeats: int) -> list[dict[str, Any]]:
    """All engines on one workload."""
    workload, exact = WORKLOADS[name](), truth(name)
    workload.gradient()
    engines = dict(ENGINES)
    if exact is None:  # nor is it known how many steps are right
        engines = {e: run for e, run in engines.items() if not e.endswith("given")}
    steps = right_steps(name, workload, exact) if exact is not None else 0
    unit = gradient_seconds(workload)
    if unit < _QUICK:
        for (
            run
        ) in engines.values():  # what is imported and compiled at the first call is not counted
            with contextlib.suppress(Exception):
                run(workload, steps)
    today = datetime.date.today().isoformat()
    rows: dict[str, dict[str, Any]] = {
        e: {"workload": workload.title, "engine": e, "date": today, "times": []} for e in engines
    }
    for repeat in range(repeats):
        for engine, row in rows.items():
            if repeat and min(row["times"]) > _LONG:
                continue
            before = gradient_seconds(workload)
            started = time.perf_counter()
            try:
                values, row["products"] = engines[engine](workload, steps)
            except Exception as problem:
                row["failed"] = f"{type(problem).__name__}: {problem}"[:200]
                continue
            spent = time.perf_counter() - started
            after = gradient_seconds(workload)
            row["times"].append(2 * spent / (before + after))
            row["error"] = None if exact is None else error(values, exact)
            print(f"{name} {engine}: {row['times'][-1]:.0f} gradients", file=sys.stderr, flush=True)
    for engine, row in rows.items():
        row["steps"] = steps
        row["parameters"] = sum(p.numel() for p in workload.parameters)
        quick = unit < _SLOW and bool(row["times"]) and min(row["times"]) < _LONG
        row["peak_memory"] = (
            child("--memory-of", engine, "--steps", str(steps), name) if quick else None
        )
    return list(rows.values())


def memory(name: str, engine: str, steps: int) -> int:
    """Bytes that the engine adds to the resident set of the loaded workload."""
    workload = WORKLOADS[name]()
    workload.gradient()
    # The peak begins anew; without this it would be that of the process that started this one.
    Path("/proc/self/clear_refs").write_text("5")
    base = used_memory(torch.device("cpu"))
    ENGINES[engine](workload, steps)
    return peak_memory(torch.device("cpu")) - base


def child(*arguments: str) -> Any:
    """The same script with other arguments, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        stdout=subprocess.PIPE, stderr=sys.stderr, text=True, check=False,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def refresh_memory(results: dict[str, Any]) -> None:
    """Measure the memory of all rows again that are not too slow for it."""
    names = {WORKLOADS[n]().title: n for n in WORKLOADS}
    for row in results["rows"]:
        if row["times"] and min(row["times"]) < _LONG:
            row["peak_memory"] = child(
                "--memory-of", row["engine"], "--steps", str(row["steps"]), names[row["workload"]]
            )


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        f"{results['machine']}, {results['threads']} threads, torch {results['torch']}; "
        "time in gradients: median, and lowest to highest where there are several.",
        "",
        "| workload | engine | gradients | products | largest error | memory | date |",
        "|:---|:---|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        name = f"{row['workload']}, {row['parameters']:,} parameters"
        if not row["times"]:
            lines.append(
                f"| {name} | {row['engine']} | failed: {row.get('failed')} | | | | {row['date']} |"
            )
            continue
        times, peak = row["times"], row["peak_memory"]
        spread = f" ({min(times):.0f} to {max(times):.0f})" if len(times) > 1 else ""
        error_ = "not known" if row["error"] is None else f"{row['error']:.0e}"
        taken = "not measured" if peak is None else f"{peak / 1e6:.0f} MB"
        lines.append(
            f"| {name} | {row['engine']} | {statistics.median(times):.0f}{spread} | {row['products']} "
            f"| {error_} | {taken} | {row['date']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--memory-of", choices=ENGINES)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--one", action="store_true")
    parser.add_argument("--only-memory", action="store_true", help="of the rows that there are")
    parser.add_argument("--without", action="append", default=[], choices=list(ENGINES))
    asked = parser.parse_args()
    for engine in asked.without:
        del ENGINES[engine]
    torch.set_num_threads(asked.threads)
    if asked.memory_of:
        print(json.dumps(memory(asked.workloads[0], asked.memory_of, asked.steps)))
        return
    if asked.one:
        print(json.dumps(measure(asked.workloads[0], asked.repeats)))
        return
    results = {
        "machine": f"{platform.machine()} with {os.cpu_count()} cores",
        "threads": asked.threads,
        "torch": torch.__version__,
        "repeats": asked.repeats,
        "rows": [],
    }
    file = HERE / "results.json"
    if file.exists():
        before = json.loads(file.read_text())
        if asked.only_memory:
            refresh_memory(before)
            file.write_text(json.dumps(before, indent=1) + "\n")
            (HERE / "results.md").write_text(table(before))
            return
        if all(before[k] == results[k] for k in ("threads", "torch")):
            titles = {WORKLOADS[n]().title for n in asked.workloads}
            results["rows"] = [r for r in before["rows"] if r["workload"] not in titles]
    for name in asked.workloads:
        rows = child(
            "--one", "--repeats", str(asked.repeats), "--threads", str(asked.threads),
            *(part for engine in asked.without for part in ("--without", engine)), name,
        )  # fmt: skip
        results["rows"] += rows or []
        file.write_text(json.dumps(results, indent=1) + "\n")
        (HERE / "results.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
