"""What each command shows on screens of several widths, from recorded answers.

python -m tests.report.screens writes it again.
"""

import gzip
import json
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from curvcli.analyses.registry import get
from curvcli.analyses.shared.answer import Answer
from curvcli.report.data import Envelope, Headline
from curvcli.report.head import headed
from curvcli.report.text import terminal

GOLDEN = Path(__file__).parent / "golden"
RECORDED = Path(__file__).parent.parent / "contracts" / "answers"
WIDTHS = (40, 60, 80, 120, 200)
# One answer of each command that says much, and doctor by hand, whose answer differs from machine to machine.
SHOWN = (
    "backprop-digits_cnn", "check-rules", "compare-mlp", "density-mlp", "gradients-digits_lstm",
    "hessian-digits_mlp", "hessian-layers", "info-mlp", "init-mlp", "jacobian-layers", "jacobian-lstm",
    "landscape-eigen", "landscape-mlp",
    "lr-linear", "report-linear", "saddle-saddle", "sharpness-mlp", "step-mlp", "taylor-mlp", "trace-mlp",
    "track-mlp", "doctor",
)  # fmt: skip
_DOCTOR: dict[str, Any] = {
    "command": "doctor",
    "version": "1",
    "target": None,
    "result": {
        "python": "3.12.3",
        "platform": "Linux-6.1-x86_64",
        "packages": {"torch": "2.13.0", "numpy": "2.4.0"},
        "devices": ["cpu"],
        "threads": 8,
        "free_memory": 16_000_000_000,
        "healthy": False,
        "tests": [
            {"name": "a quadratic's eigenvalues", "error": 3e-7, "tolerance": 1e-4, "passed": True},
            {"name": "a product in float64", "error": 2e-3, "tolerance": 1e-9, "passed": False},
        ],
    },
    "findings": [],
    "notes": [],
    "cost": {"matvecs": 0, "gradients": 0, "seconds": 1.0, "peak_memory": None},
}


def recorded(name: str) -> Envelope[Any]:
    """The answer of that name, with the sentence that it begins with today."""
    if name == "doctor":
        raw = _DOCTOR
    else:
        raw = json.loads(gzip.decompress((RECORDED / f"{name}.json.gz").read_bytes()))
        raw = {"version": "1", "notes": [], **raw}
        raw["cost"] = {"seconds": 1.0, "peak_memory": None, **raw["cost"]}
        raw = _with_times(raw)
    question = get(raw["command"])
    envelope: Envelope[Any] = msgspec.convert(raw, Envelope[question.result], strict=False)  # type: ignore[name-defined]
    answer: Answer[Any] = Answer(
        envelope.result, envelope.findings, envelope.notes, complete=envelope.complete
    )
    return msgspec.structs.replace(envelope, verdict=question.headline(answer))


def _with_times(value: Any) -> Any:
    """Recorded answers leave out what differs from run to run, where `check` says what an analysis took."""
    if isinstance(value, dict):
        found = {k: _with_times(v) for k, v in value.items()}
        return {"seconds": 1.0, "cached": False, **found} if "analysis" in found else found
    return [_with_times(v) for v in value] if isinstance(value, list) else value


def screen(envelope: Envelope[Any], width: int, headline: Headline | None = None) -> str:
    """The answer as a pipe of that width gets it."""
    buffer = StringIO()
    blocks = headed(envelope.target, get(envelope.command).view(envelope.result))
    terminal.render(
        Console(file=buffer, width=width), blocks, envelope.findings, headline or envelope.verdict
    )
    return "\n".join(line.rstrip() for line in buffer.getvalue().split("\n"))


def main() -> None:
    """Write all of them again."""
    GOLDEN.mkdir(exist_ok=True)
    for name in SHOWN:
        envelope = recorded(name)
        pages = [f"=== {width} columns ===\n{screen(envelope, width)}" for width in WIDTHS]
        (GOLDEN / f"{name}.txt").write_text("\n".join(pages), encoding="utf-8")


if __name__ == "__main__":
    main()
