"""`density` counts the eigenvalues of dense matrices, and does not look certain where it is not."""

import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

from curvcli.analyses.registry import get
from curvcli.analyses.shared.subject import Subject
from curvcli.loading.spec import make_spec, read_target_file
from curvcli.operators.curvature.hessian import Hessian
from curvcli.report.data import json_schema
from tests.oracles.program import ROOT, answer

MLP = str(ROOT / "sample_models" / "digits_mlp.toml")
SADDLE = str(ROOT / "sample_models" / "saddle.toml")


def test_density_of_a_small_network_counts_its_eigenvalues() -> None:
    code, envelope = answer("density", SADDLE, "--dtype", "float64")
    assert code == 0
    jsonschema.validate(envelope, json_schema(get("density").result))
    result = envelope["result"]
    assert result["method"] == "whole"
    spec = make_spec({**read_target_file(Path(SADDLE), ("density",)).settings, "dtype": "float64"})
    operator = Hessian(Subject(spec).objective)
    h = torch.stack([operator.matvec(e) for e in torch.eye(operator.n, dtype=torch.float64)])
    values = torch.linalg.eigvalsh(h).numpy()
    zero = result["zero"]
    assert result["mass_at_zero"]["value"] == pytest.approx((np.abs(values) <= zero).mean())
    assert result["mass_below_zero"]["value"] == pytest.approx((values < -zero).mean())
    for moment in result["moments"]:
        assert moment["value"] == pytest.approx((values ** moment["order"]).mean(), rel=1e-8)
    cell = result["grid"][1] - result["grid"][0]
    assert sum(result["density"]) * cell == pytest.approx(1, abs=0.02)


def test_density_with_probes_names_the_outliers() -> None:
    code, envelope = answer("density", MLP, "--probes", "3", "--steps", "40")
    assert code == 0
    result = envelope["result"]
    jsonschema.validate(envelope, json_schema(get("density").result))
    _, leading = answer("hessian", MLP, "--top", "3", "--bottom", "0", "--spread", "0")
    for ours, theirs in zip(result["outliers"], leading["result"]["top"], strict=False):
        assert abs(ours["value"] - theirs["value"]) <= ours["residual"] + theirs["residual"]
    assert result["probes"] >= 3
    assert result["wasserstein"] <= 0.05 * result["scale"]
    for name in ("mass_at_zero", "mass_below_zero"):
        share = result[name]
        assert share["interval"][0] <= share["value"] <= share["interval"][1]
    _, whole = answer("trace", MLP)
    trace = whole["result"]["mean_eigenvalue"]
    mean = result["moments"][0]
    # Two estimates of tr H / n.
    assert abs(mean["value"] - trace["value"]) < 5 * math.hypot(
        mean["standard_error"], trace["standard_error"]
    )


def test_too_few_probes_are_said_to_be_too_few() -> None:
    few = ("--probes", "2", "--max-probes", "2", "--tol", "1e-6", "--steps", "8")
    code, envelope = answer("density", MLP, *few)
    assert code == 3
    assert [f["rule"] for f in envelope["findings"]] == ["density.not-converged"]
    code, envelope = answer("trace", MLP, "--tol", "1e-5", "--max-matvecs", "60")
    assert code == 3
    assert [f["rule"] for f in envelope["findings"]] == ["trace.not-converged"]


def test_a_single_probe_does_not_look_certain() -> None:
    code, envelope = answer("density", MLP, "--timeout", "0s", "--outliers", "0", "--steps", "8")
    assert code == 3
    result = envelope["result"]
    assert result["probes"] == 1
    assert result["mass_at_zero"]["standard_error"] is None
    assert result["mass_at_zero"]["interval"] == [0.0, 1.0]
    assert result["moments"][0]["standard_error"] is None


def test_exact_spectra_from_the_gram_matrix_in_both_commands() -> None:
    _, density = answer("density", MLP, "--matrix", "empirical-fisher")
    _, trace = answer("trace", MLP, "--matrix", "empirical-fisher")
    assert density["result"]["method"] == trace["result"]["method"] == "gram"
    mean = density["result"]["moments"][0]["value"]
    assert mean == pytest.approx(trace["result"]["mean_eigenvalue"]["value"], rel=1e-9)
    assert density["result"]["mass_at_zero"]["value"] > 0.98  # 256 rows, 17,226 parameters
