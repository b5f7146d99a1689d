"""What each process holds and sends of a GPT-2 that is divided among 2 and 4: while loading, and in a product.

    python benchmarks/divided.py [WIDTH LAYERS]

Memory is resident memory above that of the process before it loads. Without arguments: 98 million weights.
"""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from curvcli.loading.processes import Processes
from curvcli.loading.spec import TargetSpec
from curvcli.loading.target import Target
from curvcli.machine.device import give_back_freed_memory
from curvcli.operators.curvature.hessian import Hessian

VOCABULARY, SAMPLES, TOKENS = 8192, 4, 8


def prepare(folder: Path, width: int, layers: int) -> None:
    """A directory with random weights, and its data."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=width, n_layer=layers, n_head=12
    )
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    ids = np.random.RandomState(0).randint(0, VOCABULARY, (SAMPLES, TOKENS))
    np.savez(folder / "ids.npz", input_ids=ids)


class Peak:
    """The most resident memory since `reset`, in MB above that at the start."""

    def __init__(self) -> None:
        self._start = self._peak = self._now()
        threading.Thread(target=self._watch, daemon=True).start()

    def reset(self) -> None:
        self._peak = self._now()

    def read(self) -> float:
        return (max(self._peak, self._now()) - self._start) / 1e6

    def _now(self) -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, self._now())
            time.sleep(0.002)


def worker(folder: Path) -> None:
    """One process; the first prints."""
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401  # what it takes to import is not counted

    give_back_freed_memory()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    processes = Processes(rank, size)
    peak = Peak()
    spec = TargetSpec(checkpoint=str(folder / "model"), data=str(folder / "ids.npz"), shard=True)
    target = Target(spec, ranks=processes.ranks)
    held = sum(p.numel() for p in target.model.parameters()) * 4 / 1e6
    loading = peak.read()
    objective = target.make_objective(False)
    whole = objective.n * 4 / 1e6
    traffic = processes.ranks.traffic
    lines = [
        f"{size} processes, {whole:.0f} MB: each holds {held:.0f}, {loading:.0f} while loading"
    ]
    for strategy in ("keep", "rebuild"):
        operator = Hessian(objective, strategy=strategy)
        v_N = operator.gradient.clone()
        operator.matvec(v_N)
        peak.reset()
        bytes_, messages = traffic.bytes, traffic.messages
        operator.matvec(v_N)
        sent = (traffic.bytes - bytes_) / 1e6 / whole / ((size - 1) / size)
        lines.append(
            f"  {strategy}: {peak.read() - held:.0f} MB above the weights in a product, which sends {sent:.1f} n in "
            f"{traffic.messages - messages} messages (gloo sends a sum twice)"
        )
        operator.release()
    if rank == 0:
        print("\n".join(lines), flush=True)
    processes.leave()


def main() -> None:
    """Both numbers of processes, one after the other."""
    if "RANK" in os.environ:
        worker(Path(sys.argv[1]))
        return
    width, layers = map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (768, 13)
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), width, layers)
        for size in (2, 4):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
            command = [sys.executable, __file__, name]
            started = [
                subprocess.Popen(
                    command, env={**os.environ, **shared, "OMP_NUM_THREADS": "1", "RANK": str(r)}
                )
                for r in range(size)
            ]
            if any(p.wait() for p in started):
                raise SystemExit("a process failed")


if __name__ == "__main__":
    main()
