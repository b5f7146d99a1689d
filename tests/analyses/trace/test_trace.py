"""`trace` gives the sums of dense matrices, whatever the batches, and does not look exact where it is not."""

from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from curvcli.analyses.registry import get
from curvcli.analyses.shared.subject import Subject
from curvcli.linalg.statistics.student import quantile
from curvcli.linalg.stochastic.krylov import krylov
from curvcli.linalg.stochastic.spectral_sums import Probes
from curvcli.loading.spec import make_spec, read_target_file
from curvcli.operators.curvature.gauss_newton import GaussNewton
from curvcli.operators.curvature.hessian import Hessian
from curvcli.report.data import json_schema
from tests.oracles.dense import dense_hessian, random_data, random_network
from tests.oracles.program import ROOT, answer, invoke

MLP = str(ROOT / "sample_models" / "digits_mlp.toml")
SADDLE = str(ROOT / "sample_models" / "saddle.toml")


def test_trace_of_a_small_network_is_that_of_its_dense_hessian() -> None:
    code, envelope = answer("trace", SADDLE, "--split", "--dtype", "float64")
    assert code == 0
    jsonschema.validate(envelope, json_schema(get("trace").result))
    result = envelope["result"]
    spec = make_spec({**read_target_file(Path(SADDLE), ("trace",)).settings, "dtype": "float64"})
    operator = Hessian(Subject(spec).objective)
    h = torch.stack([operator.matvec(e) for e in torch.eye(operator.n, dtype=torch.float64)])
    values = torch.linalg.eigvalsh(h).numpy()
    assert result["method"] == "whole"
    assert result["trace"]["value"] == pytest.approx(values.sum(), rel=1e-9)
    assert result["frobenius"]["value"] == pytest.approx(np.sqrt((values**2).sum()), rel=1e-9)
    d = result["damping"]
    assert result["effective_dimension"]["value"] == pytest.approx(
        (values**2 / (values**2 + d**2)).sum(), rel=1e-9
    )
    assert sum(t["trace"]["value"] for t in result["tensors"]) == pytest.approx(
        values.sum(), rel=1e-9
    )
    split = result["split"]
    whole = split["gauss_newton_trace"]["value"] + split["residual_trace"]["value"]
    assert whole == pytest.approx(values.sum(), rel=1e-9)


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_trace_with_probes_holds_the_truth(matrix: str) -> None:
    """Against the dense matrix of one layer of the sample (650 parameters)."""
    few = ("--steps", "40", "--exact-rows", "0")
    arguments = ("--params", "out.*", "--dtype", "float64", "--matrix", matrix, *few)
    code, envelope = answer("trace", MLP, *arguments)
    assert code == 0
    result = envelope["result"]
    assert result["method"] == "probes"
    spec = make_spec({**read_target_file(Path(MLP), ("trace",)).settings, "dtype": "float64"})
    objective = Subject(spec).objective
    model, ((x,), _, y) = objective.model, objective.batches[0].data
    inputs: list[torch.Tensor] = []
    hook = model.get_submodule("out").register_forward_pre_hook(lambda _, a: inputs.append(a[0]))
    logits = model(x)
    hook.remove()
    # The last layer of cross-entropy: H = Σ (diag p − p pᵀ) ⊗ a aᵀ / N with a = (h, 1); H = G there.
    p = F.softmax(logits, 1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    a = torch.cat([inputs[0], ones], 1).detach()
    h = torch.einsum("nij,nk,nl->ikjl", inner.detach(), a, a).reshape(650, 650) / len(y)
    values = torch.linalg.eigvalsh(h).numpy()
    truths = {
        "trace": values.sum(),
        "frobenius": np.sqrt((values**2).sum()),
        "participation_ratio": values.sum() ** 2 / (values**2).sum(),
    }
    d = result["damping"]
    smooth = values / (values + d) if matrix == "ggn" else values**2 / (values**2 + d**2)
    truths["effective_dimension"] = smooth.sum()
    for name, truth in truths.items():
        found = result[name]
        margin = quantile(0.999, found["degrees_of_freedom"]) * found["standard_error"]
        assert abs(found["value"] - truth) <= margin + 1e-9, name


@pytest.mark.parametrize("limit", [("--max-matvecs", "5"), ("--timeout", "0s")])
def test_a_run_that_ends_before_its_probes_does_not_look_exact(limit: tuple[str, str]) -> None:
    code, envelope = answer("trace", MLP, *limit)
    assert code == 3
    result = envelope["result"]
    assert result["method"] == "probes"
    if not result["probes"]:
        assert result["trace"]["standard_error"] is None
        assert result["participation_ratio"]["standard_error"] is None
        assert "± unknown" in invoke("trace", MLP, *limit).stdout
    # The scale of the damping takes twelve, the check of a product and its rounding two.
    assert envelope["cost"]["matvecs"] <= 5 + 12 + 2


def test_t8_to_t10_split_batches_change_no_sum(make_objective) -> None:  # type: ignore[no-untyped-def]
    """Sums over batches instead of means, another point, or a factor of accumulation would change the trace."""
    model = random_network(4, [3, 5, 2], "tanh").double()
    x, y = random_data(4, 50, 3, 2, "mse")
    truth = dense_hessian(model, x, y, "mse").trace()
    before = [p.clone() for p in model.parameters()]
    for splits in ([50], [48, 2], [10] * 5):
        objective = make_objective(model, x.double(), y.double(), "mse", splits=splits)
        for kind in (Hessian, GaussNewton):
            operator = kind(objective)
            exact = krylov(operator, operator.n, torch.Generator().manual_seed(0))
            trace = Probes(operator, exact, torch.Generator()).trace()
            if kind is Hessian:
                assert trace.value == pytest.approx(float(truth), rel=1e-10)
            else:
                whole = krylov(
                    GaussNewton(make_objective(model, x.double(), y.double(), "mse")),
                    operator.n,
                    torch.Generator().manual_seed(1),
                )
                assert trace.value == pytest.approx(whole.trace_of(lambda v: v), rel=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
