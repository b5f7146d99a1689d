"""CPU time of a product, of each of several processes against one alone.

    python benchmarks/ranks.py [TARGET …]

Two runs of `curvcli hessian` with a fixed number of products, long and short, by 1 and 2 processes of one thread each:
the difference is that of the products. All times are of the CPU, which other work on the machine hardly changes.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
_SHORT, _LONG, _TURNS = 4, 24, 3


def seconds(target: str, products: int, processes: int) -> tuple[float, dict[str, int]]:
    """CPU seconds of all processes together, and what they sent."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [
            sys.executable, "-m", "curvcli", "hessian", target, "--max-matvecs", str(products), "--top", "40",
            "--recheck", "0", "--spread", "0", "--format", "json", "--ranks", str(processes),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=False,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    return spent, json.loads(done.stdout)["cost"]["processes"]


def main() -> None:
    """Print a line for each target."""
    default = [str(HERE.parent / "sample_models" / "bytes_gpt.toml")]
    for target in sys.argv[1:] or default:
        shares = []
        for _ in range(_TURNS):
            each = {}
            for processes in (1, 2):
                (short, _), (long, sent) = (
                    seconds(target, count, processes) for count in (_SHORT, _LONG)
                )
                each[processes] = (long - short) / (_LONG - _SHORT) / processes
            shares.append(each[2] / each[1])
        print(
            f"{Path(target).name}: of two processes each takes {statistics.median(shares):.2f} "
            f"({min(shares):.2f} to {max(shares):.2f}) of the CPU time of one; {sent['sent'] / 1e6:.1f} MB in "
            f"{sent['messages']} messages from the first"
        )


if __name__ == "__main__":
    main()
