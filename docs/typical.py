"""Typical values of the figures, measured on the sample networks, for the pages in `docs/figures`.

python docs/typical.py [NETWORK …] measures them (all: half an hour) and keeps them; `table` makes a table of them.
"""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import torch

from curvcli.analyses.registry import get
from curvcli.analyses.shared.figures import Precision, figures
from curvcli.analyses.shared.paths import leaf, parsed
from curvcli.report.data import Measured
from curvcli.report.numbers import number, text

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "docs" / "typical.json"
# Network: what it is.
NETWORKS = {
    "linear_regression": "least squares, near its solution",
    "digits_mlp": "MLP, trained with weight decay",
    "digits_cnn": "CNN with BatchNorm, trained",
    "digits_lstm": "LSTM, trained",
    "long_lstm": "LSTM that forgets within a few of 100 steps",
    "bytes_gpt": "transformer, trained",
    "dead_relu": "ReLU MLP, most of one layer has died",
    "vanishing_sigmoid": "20 sigmoid layers, 200 training steps, at chance",
    "exploding": "20 tanh layers, initial gain 6, not trained",
    "saddle": "at a saddle point of its loss",
}
BATCH = ("--max-batches", "1", "--batch-size", "64")
WHOLE = ("linear_regression", "saddle")
"""Networks that are what they are on all of their data."""
ANALYSES = (
    "hessian", "saddle", "gradients", "jacobian", "backprop", "taylor", "sharpness", "trace", "lr", "step", "density",
)  # fmt: skip
# Page -> heading of a column and figure.
FIGURES = {
    "largest-eigenvalue": {"λ max": "hessian.top[0].value", "second": "hessian.top[1].value"},
    "smallest-eigenvalue": {"λ min": "hessian.bottom[0].value", "λ max": "hessian.top[0].value"},
    "reach": {"λ min": "hessian.bottom[0].value", "no eigenvalue below": "hessian.reach.lower"},
    "spread-over-data": {
        "λ max": "hessian.top[0].value",
        "± data": "hessian.top[0].batch_standard_error",
    },
    "critical-learning-rate": {
        "2/λ": "taylor.critical_learning_rate",
        "highest rate that works": "lr.highest",
    },
    "highest-learning-rate": {"lowest": "lr.lowest", "highest": "lr.highest", "ends by": "lr.ends_by"},
    "trace": {"trace": "trace.trace.value", "parameters": "trace.parameters"},
    "effective-dimension": {
        "effective dimension": "trace.effective_dimension.value",
        "participation ratio": "trace.participation_ratio.value",
        "parameters": "trace.parameters",
    },
    "mass-at-zero": {
        "share at zero": "density.mass_at_zero.value",
        "share below zero": "density.mass_below_zero.value",
    },
    "stationarity": {"ρ": "saddle.stationarity", "loss": "saddle.loss"},
    "kind-of-point": {"verdict": "saddle.verdict", "negative eigenvalues, at least": "saddle.index_at_least"},
    "trust-radius": {
        "along the gradient": 'taylor.directions["gradient"].trust_radius',
        "at random": 'taylor.directions["random"].trust_radius',
    },
    "predicted-change": {
        "gradient: predicted": 'step.methods["gradient"].predicted_change',
        "true": 'step.methods["gradient"].true_change',
        "Newton: predicted": 'step.methods["newton"].predicted_change',
        "true ": 'step.methods["newton"].true_change',
    },
    "gradient-gain": {
        "gain per layer": "gradients.gain_per_layer",
        "gain over the depth": "gradients.depth_gain",
    },
    "dead-units": {"dead units": "track.points[0].dead_fraction"},
    "noise-scale": {"noise scale, samples": "track.points[0].noise_scale"},
    "jacobian-norm": {"median": "jacobian.spectral.median", "largest": "jacobian.spectral.maximum"},
    "isometry": {"χ of the first layer": "jacobian.layers[0].chi", "of the last": "jacobian.layers[-1].chi"},
    "memory-horizon": {
        "factor for each step back": "gradients.time[0].gain_per_step",
        "memory horizon, steps": "gradients.time[0].memory_horizon",
    },
    "worst-case-sharpness": {
        "worst case": "sharpness.worst.found",
        "adaptive": "sharpness.worst_adaptive.found",
    },
    "tolerated-noise": {"σ": "sharpness.pac_bayes.value", "adaptive": "sharpness.pac_bayes_adaptive.value"},
    "relative-flatness": {
        "relative flatness": "sharpness.relative_flatness.value",
        "Fisher-Rao norm": "sharpness.fisher_rao.value",
    },
    "feature-rank": {"feature rank": "track.points[0].feature_rank"},
    "loss-at-chance": {"loss": "gradients.sanity.loss", "of the best constant": "gradients.sanity.chance"},
    "product-check": {"product check": "hessian.hvp_check"},
    "gradient-check": {"largest error": "backprop.slopes[0].error", "passed": "backprop.passed"},
}  # fmt: skip


def asked(name: str, *words: str) -> dict[str, Any]:
    """The answer of a command as JSON."""
    command = [
        sys.executable,
        "-m",
        "curvcli",
        *words,
        f"{ROOT}/sample_models/{name}.toml",
        *([] if name in WHOLE else BATCH),
    ]
    done = subprocess.run(
        [*command, "--format", "json"], capture_output=True, text=True, check=False
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def measured(name: str, analyses: tuple[str, ...] = ANALYSES) -> dict[str, Any]:
    """Path -> (value, both ends of its interval, what that rests on) of one network."""
    chosen = [word for one in analyses for word in ("--analysis", one)]
    report = asked(name, "report", *chosen, "--budget", "15m")["result"]
    results = {p["analysis"]: p["result"] for p in report["parts"] if p["complete"]}
    results["track"] = asked(name, "track", "--probes", "0")["result"]
    found = {}
    for path in dict.fromkeys(path for columns in FIGURES.values() for path in columns.values()):
        analysis, steps = parsed(path)
        result = results.get(analysis)
        kind = leaf(get(analysis).result, steps, analysis)
        if result is None:
            continue
        try:
            (figure,) = figures(
                msgspec.convert(result, get(analysis).result, strict=False),
                kind,
                analysis,
                Precision(0.95),
            )
        except (LookupError, IndexError):
            continue  # a network without such layers
        found[path] = [figure.value, figure.low, figure.high, figure.basis]
    return found


def table(page: str) -> str:
    """The values of a page's figures, network by network."""
    record = json.loads(RECORD.read_text("utf-8"))
    columns = FIGURES[page]
    lines = [
        f"| network | {' | '.join(name.strip() for name in columns)} |",
        f"|:---|{'---:|' * len(columns)}",
    ]
    for name, known in record["networks"].items():
        cells = [_cell(known.get(path)) for path in columns.values()]
        if any(cell != "—" for cell in cells):
            lines.append(f"| `{name}`: {NETWORKS[name]} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{record['settings']}."])


def _cell(known: list[Any] | None) -> str:
    if known is None or known[0] is None:
        return "—"
    value, low, high, basis = known
    if (
        not isinstance(value, float)
        or low is None
        or high is None
        or basis in ("rounding", "exact")
    ):
        return text(value)
    if basis in ("interval", "reach"):
        wide = number(low) != number(high)
        return f"{number(value)} [{number(low)}, {number(high)}]" if wide else number(value)
    return text(Measured(value, (high - low) / 2))


def main() -> None:
    """Measure the networks that are named, or all, and keep what is known of the others."""
    known = json.loads(RECORD.read_text("utf-8"))["networks"] if RECORD.exists() else {}
    settings = (
        f"One batch of 64 samples (`linear_regression` and `saddle`: all), {datetime.now(UTC):%Y-%m-%d}, torch "
        f"{torch.__version__}; ± residual or 95 %, [interval]. `python docs/typical.py` measures again"
    )
    for name in sys.argv[1:] or NETWORKS:
        known[name] = measured(name)
        record = {"settings": settings, "networks": {n: known[n] for n in NETWORKS if n in known}}
        RECORD.write_text(json.dumps(record, ensure_ascii=False) + "\n", "utf-8")
        print(name, len(known[name]), flush=True)


if __name__ == "__main__":
    main()
