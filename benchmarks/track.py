"""Products that `curvcli track` needs along a training, warm and from scratch.

Trains the digits MLP from its initialisation with full-batch gradient descent and momentum, writes a checkpoint
every few steps, and tracks the series twice. Run: python benchmarks/track.py [folder]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "sample_models"))
STEPS, EVERY, RATE = 300, 10, 0.05


def train(folder: Path) -> None:
    """Checkpoints step_0 … of the digits MLP."""
    from models import DigitsMLP

    torch.manual_seed(0)
    model = DigitsMLP()
    data = np.load(ROOT / "sample_models" / "digits.npz")
    x, y = torch.from_numpy(data["x"]).float(), torch.from_numpy(data["y"]).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            save_file(model.state_dict(), folder / f"step_{step}.safetensors")
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def tracked(folder: Path, *flags: str) -> list[dict[str, object]]:
    """The points of the series."""
    done = subprocess.run(
        [
            sys.executable, "-m", "curvcli", "track", str(ROOT / "sample_models/digits_mlp.toml"), str(folder),
            "--format", "json", "--lr", str(RATE), "--probes", "0", *flags,
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    points: list[dict[str, object]] = json.loads(done.stdout)["result"]["points"]
    return points


def main() -> None:
    """Train where there is no series yet, track both ways, print the ratio."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("step_*")):
        train(folder)
    torch.set_num_threads(1)
    print(
        "| tolerance | checkpoints | products from scratch | warm | ratio |\n|---:|---:|---:|---:|---:|"
    )
    for tol in ("1e-2", "1e-3", "1e-4"):
        scratch = tracked(folder, "--no-warm", "--tol", tol)
        warm = tracked(folder, "--tol", tol)
        sums = [sum(int(str(p["matvecs"])) for p in points[1:]) for points in (scratch, warm)]
        print(f"| {tol} | {len(warm) - 1} | {sums[0]} | {sums[1]} | {sums[0] / sums[1]:.2f} |")


if __name__ == "__main__":
    main()
