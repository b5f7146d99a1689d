"""Leading eigenvalues of GPT-2 within a memory that its Krylov vectors do not fit in, and with these in a file.

python benchmarks/offload.py FOLDER [SIZE [TOKENS [MEMORY [TOP [PRODUCTS]]]]]. Seeded weights of GPT-2 small (124
million) or medium (355 million) as transformers configures them, four samples of random tokens (one with `medium`).
The network, the file and a state from which a run goes on are in FOLDER. What the process has of its own (RssAnon) is
told apart from what the system keeps of files in memory as long as there is room (RssFile).
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

SIZES = {"small": {}, "medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16}}
SAMPLES = {"small": 4, "medium": 1}


def write(folder: Path, size: str, tokens: int) -> None:
    """The network as a directory, and its data."""
    from transformers import GPT2Config, GPT2LMHeadModel

    if not (folder / size).exists():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(attn_implementation="eager", **SIZES[size]))
        model.save_pretrained(folder / size)
    ids = np.random.default_rng(0).integers(0, 50257, (SAMPLES[size], tokens))
    np.savez(folder / "ids.npz", input_ids=ids)


def measured(arguments: list[str]) -> dict[str, float | str]:
    """What a run says, and the most memory that it had."""
    command = [sys.executable, "-m", "curvcli", "hessian", *arguments, "--format", "json", "-q"]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    most = {"RssAnon": 0, "RssFile": 0}
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        for name, value in (line.split(":", 1) for line in lines):
            if name in most:
                most[name] = max(most[name], int(value.split()[0]))
        time.sleep(0.2)
    assert process.stdout is not None
    told = process.stdout.read()
    seconds = time.monotonic() - began
    answer = json.loads(told)
    if answer["result"] is None:
        return {"error": answer["error"]["message"], "minutes": round(seconds / 60, 1)}
    result, cost = answer["result"], answer["cost"]
    return {
        "complete": str(answer["complete"]),
        "values": ", ".join(f"{p['value']:.6g} ± {p['residual']:.1g}" for p in result["top"]),
        "products": cost["matvecs"],
        "restarts": result["restarts"],
        "vectors": result["basis"],
        "minutes": round(seconds / 60, 1),
        "own memory, GB": round(most["RssAnon"] / 2**20, 2),
        "of files, GB": round(most["RssFile"] / 2**20, 2),
    }


def main() -> None:
    """Print one line for each way."""
    folder = Path(sys.argv[1])
    given, usual = sys.argv[2:], ("small", "64", "7GB", "3", "1000")
    size, tokens, memory, top, products = (*given, *usual[len(given) :])
    write(folder, size, int(tokens))
    target = [
        str(folder / size), "--data", str(folder / "ids.npz"), "--memory", memory, "--top", top, "--bottom", "0",
        "--max-matvecs", products,
    ]  # fmt: skip
    for way in (["--offload", str(folder), "--state", str(folder / "run.state")], []):
        print(" ".join(way) or "in memory", measured([*target, *way]), flush=True)


if __name__ == "__main__":
    main()
