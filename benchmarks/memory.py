"""Is ``--memory`` obeyed? The program on a batch of ResNet-20 that does not fit, under one limit after the other.

    python benchmarks/memory.py [SAMPLES]

Prints, for each limit, the peak of the resident set as the operating system counted it, its share of the limit, how
products were computed, and the leading eigenvalue. Writes ``memory.md`` beside this file.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

from torch import Tensor, nn
from workloads import digit_images, resnet20

HERE = Path(__file__).parent
LIMITS = ("0.5GB", "1GB", "2GB", "4GB")
SAMPLES = 512


def model() -> nn.Module:
    """ResNet-20, trained for 24 steps."""
    return resnet20().model


def batches() -> list[tuple[Tensor, Tensor]]:
    """One batch: images and classes."""
    return [digit_images(SAMPLES)]


def run(limit: str) -> dict[str, object]:
    """The answer under a limit, with the peak that the operating system saw."""
    here = Path(__file__).name
    done = subprocess.run(
        [
            sys.executable, "-m", "curvcli", "hessian", "--model", f"{here}:model", "--data", f"{here}:batches",
            "--loss", "cross_entropy", "--top", "3", "--bottom", "1", "--memory", limit, "--format", "json",
        ],
        cwd=HERE, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    if answer["result"] is None:
        return {"limit": limit, "message": answer["error"]["message"]}
    return {
        "limit": limit,
        "peak": answer["cost"]["peak_memory"],
        "result": answer["result"],
        "seconds": answer["cost"]["seconds"],
        "matvecs": answer["cost"]["matvecs"],
    }


def main() -> None:
    """All limits."""
    lines = [
        "| `--memory` | peak | of the limit | graph | micro-batch | basis | products | λ₁ |",
        "|:---|---:|---:|:---|---:|---:|---:|---:|",
    ]
    for limit in LIMITS:
        row = run(limit)
        if "message" in row:
            lines.append(f"| {limit} | {row['message']} | | | | | | |")
            continue
        result = row["result"]
        assert isinstance(result, dict)
        share = float(str(row["peak"])) / (float(limit.removesuffix("GB")) * 1e9)
        lines.append(
            f"| {limit} | {float(str(row['peak'])) / 1e6:.0f} MB | {share:.0%} | {result['products']} "
            f"| {result['micro_batch'] or 'whole'} | {result['basis']} | {row['matvecs']} "
            f"| {result['top'][0]['value']:.6g} |"
        )
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    (HERE / "memory.md").write_text(text)
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"{text}\nlargest resident set of any run: {largest / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
