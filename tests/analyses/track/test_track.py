"""`track` follows a series by its closed form, cheaper from point to point, and goes on past what is damaged."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import msgspec
import numpy as np
import pytest

from curvcli.analyses.registry import get
from curvcli.api import analyse, load
from curvcli.report.data import json_schema
from curvcli.training.afterwards import series_in
from tests.oracles.checkpoints import descent, moved_regression
from tests.oracles.program import ROOT, answer, in_terminal, invoke, run

LINEAR = str(ROOT / "sample_models" / "linear_regression.toml")


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return descent(tmp_path)


def test_a_series_against_its_closed_form(series: Path, samples: Path) -> None:
    """Constant Hessian (2/N) [X 1]ᵀ [X 1]: eigenvalues 2.66e-4 … 26.56, its trace, and 2/lr."""
    with np.load(samples / "breast_cancer.npz") as archive:
        data = dict(archive)
    design = np.concatenate([data["x"], np.ones((len(data["x"]), 1))], 1).astype(np.float64)
    matrix = 2 / len(design) * design.T @ design
    expected = np.linalg.eigvalsh(matrix)
    code, envelope = answer(
        "track", LINEAR, str(series), "--lr", "0.08", "--dtype", "float64", "--probes", "12"
    )
    assert code == 0
    jsonschema.validate(envelope, json_schema(get("track").result))
    points = envelope["result"]["points"]
    assert [p["step"] for p in points] == [0, 2, 4, 6, 8, 10]
    for point in points:
        for name, value in (("lambda_max", expected[-1]), ("lambda_min", expected[0])):
            assert abs(point[name]["value"] - value) <= point[name]["residual"]
        assert point["reach"]["upper"] >= expected[-1]
        assert point["reach"]["lower"] <= expected[0]
        # Five standard errors from 12 probes.
        trace = point["trace"]
        assert abs(trace["value"] - np.trace(matrix)) <= 5 * trace["standard_error"]
        assert point["edge"] == "at"  # 26.56 against 25
    assert [p["warm"] for p in points] == [False, True, True, True, True, True]
    losses = [p["loss"] for p in points]
    assert losses == sorted(losses, reverse=True)
    above = answer("track", LINEAR, str(series), "--lr", "0.2", "--probes", "0")[1]
    assert {p["edge"] for p in above["result"]["points"]} == {"above"}
    assert above["findings"][0]["rule"] == "track.edge-above"


def test_warm_starts_need_fewer_products_for_the_same_answer(series: Path) -> None:
    def products(*flags: str) -> tuple[int, list[float]]:
        points = answer("track", LINEAR, str(series), "--probes", "0", *flags)[1]["result"][
            "points"
        ]
        return sum(p["matvecs"] for p in points[1:]), [p["lambda_max"]["value"] for p in points]

    (warm, values), (scratch, others) = products(), products("--no-warm")
    assert warm < scratch
    assert values == pytest.approx(others, rel=1e-4)


def test_one_bad_checkpoint_is_a_finding_and_the_rest_are_reported(series: Path) -> None:
    path = series / "step_4.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    done = invoke("track", LINEAR, str(series), "--probes", "0", "--format", "ndjson")
    assert done.exit_code == 0
    points = [json.loads(line) for line in done.stdout.splitlines()]
    assert [p["step"] for p in points] == [0, 2, 4, 6, 8, 10]
    assert [p["error"] is None for p in points] == [True, True, False, True, True, True]
    assert "truncated" in points[2]["error"]["message"]
    assert "step_4.safetensors" in done.stderr
    code, envelope = answer("track", LINEAR, str(series), "--probes", "0", "--strict")
    assert code == 1
    assert [f["rule"] for f in envelope["findings"]] == ["track.bad-checkpoint"]
    assert envelope["result"]["failed"] == 1
    assert "cannot be read" in invoke("track", LINEAR, str(series), "--probes", "0").stdout


def test_a_series_with_nothing_in_it_is_an_error(tmp_path: Path) -> None:
    done = invoke("track", LINEAR, str(tmp_path))
    assert done.exit_code == 2
    assert "no checkpoint with a step number" in done.stderr
    done = invoke("track", LINEAR, "none_1.pt", "none_2.pt")
    assert done.exit_code == 2
    assert "there is no file" in done.stderr


def test_lines_come_as_the_series_goes_on(series: Path) -> None:
    """In a real pipe the first line is there while the process is still running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "curvcli", "track", LINEAR, str(series), "--probes", "12", "--format", "ndjson"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert first["step"] == 0
    assert process.poll() is None
    rest = process.communicate(timeout=60)[0]
    assert [json.loads(line)["step"] for line in rest.splitlines()] == [2, 4, 6, 8, 10]
    assert process.returncode == 0


def test_track_and_compare_in_a_terminal(series: Path, tmp_path: Path) -> None:
    other = moved_regression(tmp_path)
    code, shown = in_terminal("track", LINEAR, str(series), "--lr", "0.08", "--probes", "0")
    assert code == 0
    assert "Sharpness over training" in shown
    code, shown = in_terminal("compare", LINEAR, str(other), "--analysis", "hessian")
    assert code == 0
    assert "Layers that moved" in shown
    assert "\x1b" not in run("compare", LINEAR, str(other), "--analysis", "hessian").stdout


def test_figures_of_other_analyses_are_those_of_the_analyses_alone(
    series: Path, tmp_path: Path
) -> None:
    """With their intervals, in table and picture; from the saved state too."""
    named = ["sharpness.average_adaptive.value", "hessian.top[1].value", "saddle.verdict"]
    given = [word for path in named for word in ("--figure", path)]
    settings = ("--probes", "0", "--dtype", "float64", "--state", str(tmp_path / "state"))
    code, envelope = answer("track", LINEAR, str(series), *given, *settings)
    assert code == 0
    points = envelope["result"]["points"]
    last = series / points[-1]["checkpoint"]
    subject = load(LINEAR, checkpoint=str(last), dtype="float64")
    alone = {name: analyse(name, subject).result for name in ("sharpness", "hessian", "saddle")}
    values = [alone["sharpness"].average_adaptive.value, alone["hessian"].top[1].value]
    assert [f["value"] for f in points[-1]["figures"]] == [*values, alone["saddle"].verdict]
    assert [f["path"] for f in points[0]["figures"]] == named
    spread, eigenvalue, _ = points[-1]["figures"]
    assert spread["low"] < spread["value"] < spread["high"]
    assert eigenvalue["basis"] == "residual"
    kept = answer("track", LINEAR, str(series), *given, *settings)[1]["result"]["points"]
    assert [p["figures"] for p in kept] == [p["figures"] for p in points]
    result = msgspec.convert(envelope["result"], get("track").result, strict=False)
    titles = [getattr(block, "title", "") for block in get("track").view(result)]
    assert "Figures over training" in titles
    assert "sharpness.average_adaptive.value over training" in titles
    assert "saddle.verdict over training" not in titles
    logged = series_in("track", result)[-1][1]
    assert logged["hessian.top[1].value"] == eigenvalue["value"]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("sharp.average", "sharpness"),
        ("hessian.tops", "top"),
        ("hessian", "figure"),
        ("a b", "figure"),
    ],
)
def test_a_figure_that_does_not_exist_is_refused_at_once(path: str, told: str) -> None:
    done = invoke("track", LINEAR, LINEAR, "--figure", path)
    assert done.exit_code == 2
    assert told in done.stderr
