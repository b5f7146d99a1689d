"""What a process costs beside the import of torch and the analysis.

    python benchmarks/startup.py [REPEATS]

In turns: a process that imports torch, and `curvcli hessian` on samples that take next to no time. Prints the
medians and the differences in seconds, with the lowest and highest.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

SAMPLES = Path(__file__).parent.parent / "sample_models"


def seconds(*arguments: str) -> float:
    """Wall time of a Python process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Measure."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    commands = {
        "--help": ("--help",),
        "hessian, 31 parameters": ("hessian", str(SAMPLES / "linear_regression.toml")),
        "hessian, 17,226 parameters": ("hessian", str(SAMPLES / "digits_mlp.toml")),
        "jacobian, 17,226 parameters": ("jacobian", str(SAMPLES / "digits_mlp.toml")),
        "gradients, 17,226 parameters": ("gradients", str(SAMPLES / "digits_mlp.toml")),
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    torch_alone = []
    for _ in range(repeats):
        torch_alone.append(seconds("-c", "import torch"))
        for name, arguments in commands.items():
            times[name].append(seconds("-m", "curvcli", *arguments))
    print(f"import torch                   {statistics.median(torch_alone):.2f}")
    for name, found in times.items():
        beyond = [f - t for f, t in zip(found, torch_alone, strict=True)]
        print(
            f"{name:<30} {statistics.median(found):.2f}   beyond torch {statistics.median(beyond):+.2f} "
            f"({min(beyond):+.2f} to {max(beyond):+.2f})"
        )


if __name__ == "__main__":
    main()
