"""Prints what each command says of each breakage as a Markdown table: python -m tests.breakages."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.breakages.projects import BREAKAGES, healthy, written
from tests.oracles.program import answer


def _rules(found: dict[str, Any]) -> str:
    names = dict.fromkeys(f["rule"].split(".", 1)[1] for f in found["findings"])
    return ", ".join(names) or "none"


def main() -> None:
    """One row for each breakage, and one for the healthy control."""
    lines = [
        "| breakage | `gradients` finds | `check`: exit code, broken rules | `saddle` | `track` |",
        "|:---|:---|:---|:---|:---|",
    ]
    for name, make in {**BREAKAGES, "healthy": healthy}.items():
        with tempfile.TemporaryDirectory() as place:
            target = written(make(), Path(place))
            _, gradients = answer("gradients", target)
            code, check = answer("check", target, "--no-cache")
            _, saddle = answer("saddle", target)
            _, track = answer("track", target, str(Path(place) / "run"), "--probes", "0")
            broken = [
                rule["rule"].split(" ")[0]
                for checked in check["result"]["targets"]
                for rule in checked["rules"]
                if rule["decision"] in ("violation", "error")
            ]
            verdict = saddle["result"]["verdict"] if saddle["result"] else saddle["error"]["code"]
            lines.append(
                f"| {name} | {_rules(gradients)} | {code}: {', '.join(broken) or 'all hold'} "
                f"| {verdict} ({_rules(saddle)}) | {_rules(track)} |"
            )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
