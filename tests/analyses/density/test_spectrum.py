"""`trace` and `density`: sums over whole spectra that are prescribed or dense, and the honesty of their errors."""

import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvcli.analyses.registry import get
from curvcli.linalg.operator import Deflated
from curvcli.linalg.statistics.student import central_probability, quantile
from curvcli.linalg.stochastic.density import Density, cumulative_bounds, wasserstein
from curvcli.linalg.stochastic.quadrature import Nodes, gauss_rules, random_complement
from curvcli.linalg.stochastic.spectral_sums import Goal, Probes, estimate, krylov
from curvcli.report.data import json_schema
from tests.analyses.saddle.test_surface import Matrix
from tests.oracles.dense import dense_hessian, random_data, random_network
from tests.oracles.program import ROOT, answer, invoke, run

MLP = str(ROOT / "sample_models" / "digits_mlp.toml")
SADDLE = str(ROOT / "sample_models" / "saddle.toml")


def spectrum(n: int = 160, seed: int = 1) -> np.ndarray:
    """Five outliers, a bulk on both sides of zero, many near zero: like that of a network."""
    rng = np.random.default_rng(seed)
    bulk = np.concatenate([rng.uniform(-0.5, 2, n // 3), np.exp(-8 * rng.random(n - 5 - n // 3))])
    return np.concatenate([[50.0, 20, 10, 8, -5], bulk])


def matrix_of(values: np.ndarray, seed: int = 2) -> Matrix:
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return Matrix(q @ torch.diag(torch.from_numpy(values)) @ q.T)


# Student's t


def test_quantiles_of_student_from_tables() -> None:
    """Abramowitz & Stegun, table 26.10."""
    for degrees, confidence, expected in (
        (1, 0.95, 12.706), (2, 0.99, 9.925), (5, 0.95, 2.571), (9, 0.95, 2.262), (30, 0.999, 3.646),
    ):  # fmt: skip
        assert quantile(confidence, degrees) == pytest.approx(expected, abs=5e-4)
    assert quantile(0.95, 10**5) == pytest.approx(1.95997, abs=1e-4)
    assert central_probability(math.inf, 3) == 1


# sums


def test_a_space_that_is_spanned_gives_exact_sums() -> None:
    values = spectrum(40)
    op = matrix_of(values)
    found, status = estimate(op, 40, Goal(0.01, (np.abs,)), torch.Generator().manual_seed(0))
    assert status == "converged"
    assert not found.forms
    # eigh in float64 of a matrix of norm 50
    assert found.trace().value == pytest.approx(values.sum(), abs=1e-11)
    assert found.trace().standard_error == 0
    assert found.square_sum().value == pytest.approx((values**2).sum(), abs=1e-9)
    assert found.sum_of(np.abs).value == pytest.approx(np.abs(values).sum(), abs=1e-11)


def test_breakdowns_are_continued() -> None:
    """T11: H = 3 I has one Krylov vector at a time."""
    op = Matrix(3 * torch.eye(12, dtype=torch.float64))
    exact = krylov(op, 12, torch.Generator().manual_seed(0))
    assert exact.trace_of(lambda x: x) == pytest.approx(36)
    tiny = Matrix(1e-13 * torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)))
    exact = krylov(tiny, 3, torch.Generator().manual_seed(0))
    assert exact.trace_of(lambda x: x) == pytest.approx(6e-13)


def covered(runs: int, tol: float) -> dict[str, float]:
    """In how many of the runs the 95 % intervals hold the truth."""
    values = spectrum()
    op = matrix_of(values)
    half = len(values) // 2
    diagonal = op.a.diag().numpy()
    truth = {
        "trace": values.sum(),
        "squares": (values**2).sum(),
        "participation": values.sum() ** 2 / (values**2).sum(),
        "block": diagonal[:half].sum(),
    }
    held = dict.fromkeys(truth, 0)
    for seed in range(runs):
        found, _ = estimate(
            op, 16, Goal(tol), torch.Generator().manual_seed(1000 + seed),
            blocks=lambda v: torch.stack([v[:half].sum(), v[half:].sum()]),
        )  # fmt: skip
        sums = {
            "trace": found.trace(),
            "squares": found.square_sum(),
            "participation": found.participation_ratio(),
            "block": found.block_traces()[0],
        }
        for name, one in sums.items():
            held[name] += abs(one.value - truth[name]) <= one.half_width
    return {name: count / runs for name, count in held.items()}


@pytest.mark.parametrize("tol", [1.0, 0.02])
def test_95_percent_intervals_hold_the_truth_in_93_to_97_percent_of_500_runs(tol: float) -> None:
    """With a fixed number of probes, and stopped on the standard error."""
    for name, share in covered(500, tol).items():
        assert 0.93 <= share <= 0.97, name


def test_t6_a_trace_is_stopped_on_its_standard_error_not_on_a_running_mean() -> None:
    """A running mean that moves by less than 0.1 % stops after 2 to 8 probes, 15 to 31 % off."""
    values = spectrum(400, seed=5)
    op = matrix_of(values)
    errors = []
    for seed in range(40):
        found, status = estimate(op, 4, Goal(0.03), torch.Generator().manual_seed(seed))
        assert status == "converged"
        trace = found.trace()
        assert trace.standard_error <= 0.03 * max(abs(trace.value), found.square_sum().value ** 0.5)
        errors.append(
            abs(trace.value - values.sum()) / max(values.sum(), np.sqrt((values**2).sum()))
        )
    assert np.mean(errors) < 0.03


def test_the_budget_ends_a_run_that_says_so() -> None:
    op = matrix_of(spectrum())
    found, status = estimate(op, 8, Goal(1e-9, max_matvecs=40), torch.Generator().manual_seed(0))
    assert status == "max_matvecs"
    assert len(found.forms) == 40 - len(found.exact.vectors_LN)
    _, status = estimate(
        op, 8, Goal(1e-9), torch.Generator().manual_seed(0), stop=lambda: "timeout"
    )
    assert status == "timeout"


@given(st.integers(5, 40), st.integers(0, 1000), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_diagonal_and_its_blocks(n: int, seed: int, kept: int) -> None:
    """Every probe is exact where the sign vectors are all the coordinate axes: E = the diagonal of A."""
    values = np.random.default_rng(seed).normal(size=n)
    op = matrix_of(values, seed)
    exact = krylov(op, kept, torch.Generator().manual_seed(seed))
    q = exact.kept_MN
    expected = (q * (q @ op.a)).sum(0)
    # The recurrence against products: rounding times the norm.
    assert torch.allclose(exact.diagonal(), expected, atol=1e-11)


# the density


def test_t7_weights_are_the_first_entries_of_the_eigenvectors() -> None:
    """A start vector with known components: the weights of its Gauss rule are their squares."""
    values = torch.tensor([1.0, 2.0, 5.0, 9.0], dtype=torch.float64)
    parts = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    rules = gauss_rules(Matrix(torch.diag(values)), parts.sqrt(), 4)
    assert np.allclose(rules.nodes.theta_M, values.numpy())
    assert np.allclose(rules.nodes.weights_M, parts.numpy())
    # Half of the steps integrate polynomials of degree 3 exactly.
    for k in range(4):
        moment = float(parts @ values**k)
        assert rules.half.weights_M @ rules.half.theta_M**k == pytest.approx(moment)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_wasserstein_is_that_of_the_quantiles(a: int, b: int, seed: int) -> None:
    """∫ |F⁻¹ − G⁻¹| over a fine grid of probabilities."""
    rng = np.random.default_rng(seed)
    first = Nodes(np.sort(rng.normal(size=a)), rng.dirichlet(np.ones(a)))
    second = Nodes(np.sort(rng.normal(size=b)), rng.dirichlet(np.ones(b)))
    levels = (np.arange(20_000) + 0.5) / 20_000
    quantiles = [
        r.theta_M[np.minimum(np.searchsorted(np.cumsum(r.weights_M), levels), len(r.theta_M) - 1)]
        for r in (first, second)
    ]
    expected = np.abs(quantiles[0] - quantiles[1]).mean()
    # 24 jumps, each on a cell of the grid of probabilities, over a range of some units.
    assert wasserstein(first, second) == pytest.approx(expected, abs=24 * 6 / 20_000)


@given(st.integers(0, 10_000), st.integers(2, 12), st.floats(-3, 3))
@settings(max_examples=80, deadline=None)
def test_cumulative_bounds_hold_the_measure(seed: int, steps: int, x: float) -> None:
    rng = np.random.default_rng(seed)
    values, parts = rng.normal(size=30), rng.dirichlet(np.ones(30))
    rule = gauss_rules(
        Matrix(torch.diag(torch.from_numpy(values))), torch.from_numpy(np.sqrt(parts)), steps
    ).nodes
    low, high = cumulative_bounds(rule, x)
    truth = parts[values < x].sum()
    assert low - 1e-9 <= truth <= high + 1e-9


def test_mass_moments_and_curve_of_a_known_spectrum() -> None:
    values = spectrum(300, seed=4)
    op = matrix_of(values)
    generator = torch.Generator().manual_seed(0)
    top = np.argsort(-np.abs(values))[:5]
    vectors, order = torch.linalg.eigh(op.a)[1], np.argsort(values)
    known = vectors.T[[int(np.flatnonzero(order == i)[0]) for i in top]].contiguous()
    rest = Deflated(op, known)
    density = Density(
        300, values[top],
        [gauss_rules(rest, random_complement(op, known, generator), 40).nodes for _ in range(12)],
    )  # fmt: skip
    for order_ in (1, 2, 3, 4):
        value, error = density.moment(order_)
        assert abs(value - (values**order_).mean()) <= quantile(0.999, 11) * error + 1e-9
    for x in (0.0, 0.3):
        mass = density.below(x)
        truth = (values < x).mean()
        margin = quantile(0.999, 11) * mass.standard_error
        assert mass.low - margin <= truth <= mass.high + margin
    assert density.spread() > 0
    curve = density.curve(-1.5, 3.5, 400)
    cell = curve.grid_G[1] - curve.grid_G[0]
    # Triangles keep the mass of the bulk: 295 of 300 eigenvalues.
    assert curve.density_G.sum() * cell == pytest.approx(295 / 300, abs=1e-9)
    smooth = np.histogram(values[np.abs(values) < 4], bins=10, range=(-1.5, 3.5))[0] / 300
    ours = curve.density_G.reshape(10, 40).sum(1) * cell
    # Nodes lie around the many eigenvalues next to zero: there only the sum is known. Twelve probes of 300 entries
    # hold every share to some percent of all.
    assert np.abs(ours - smooth)[4:].max() < 0.03
    assert ours[:4].sum() == pytest.approx(smooth[:4].sum(), abs=0.03)
    logs = [density.log_curve(1e-12, 100.0, 400, sign) for sign in (1, -1)]
    steps = np.diff(np.log10(logs[0].grid_G))[0]
    shares = [float(c.density_G.sum()) * steps for c in logs]
    # The axis is long enough for all triangles.
    assert sum(shares) == pytest.approx(295 / 300, abs=1e-9)
    assert shares[0] > 4 * shares[1]


def test_rules_do_not_see_what_was_taken_out() -> None:
    """Without projecting, rounding brings an outlier back that is a thousand times the bulk."""
    values = np.concatenate([[1000.0], np.linspace(0, 1, 99)])
    op = Matrix(torch.diag(torch.from_numpy(values)))
    known = torch.eye(100, dtype=torch.float64)[:1]
    q = random_complement(op, known, torch.Generator().manual_seed(0))
    assert gauss_rules(Deflated(op, known), q, 40).nodes.theta_M.max() <= 1 + 1e-9


# the commands


def test_trace_of_a_small_network_is_that_of_its_dense_hessian() -> None:
    code, envelope = answer("trace", SADDLE, "--split", "--dtype", "float64")
    assert code == 0
    jsonschema.validate(envelope, json_schema(get("trace").result))
    result = envelope["result"]
    from curvcli.analyses.shared.subject import Subject
    from curvcli.loading.spec import make_spec, read_target_file
    from curvcli.operators.curvature.hessian import Hessian

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
    import torch.nn.functional as F

    from curvcli.analyses.shared.subject import Subject
    from curvcli.loading.spec import make_spec, read_target_file

    arguments = ("--params", "out.*", "--dtype", "float64", "--matrix", matrix, "--exact-rows", "0")
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


def test_density_of_a_small_network_counts_its_eigenvalues() -> None:
    code, envelope = answer("density", SADDLE, "--dtype", "float64")
    assert code == 0
    jsonschema.validate(envelope, json_schema(get("density").result))
    result = envelope["result"]
    assert result["method"] == "whole"
    from curvcli.analyses.shared.subject import Subject
    from curvcli.loading.spec import make_spec, read_target_file
    from curvcli.operators.curvature.hessian import Hessian

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
    assert envelope["cost"]["matvecs"] <= 5 + 12  # the scale of the damping takes twelve


def test_exact_spectra_from_the_gram_matrix_in_both_commands() -> None:
    _, density = answer("density", MLP, "--matrix", "empirical-fisher")
    _, trace = answer("trace", MLP, "--matrix", "empirical-fisher")
    assert density["result"]["method"] == trace["result"]["method"] == "gram"
    mean = density["result"]["moments"][0]["value"]
    assert mean == pytest.approx(trace["result"]["mean_eigenvalue"]["value"], rel=1e-9)
    assert density["result"]["mass_at_zero"]["value"] > 0.98  # 256 rows, 17,226 parameters


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_picture_of_the_charts(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    file = tmp_path / f"density.{kind}"
    code = run("density", SADDLE, "-o", str(file)).returncode
    assert code == 0
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG" if kind == "png" else b"<?xml")
    result = invoke("info", SADDLE, "-o", str(tmp_path / f"info.{kind}"))
    assert result.exit_code == 2
    assert "no chart" in result.stderr


def test_t8_to_t10_split_batches_change_no_sum(make_objective) -> None:  # type: ignore[no-untyped-def]
    """Sums over batches instead of means, another point, or a factor of accumulation would change the trace."""
    from curvcli.operators.curvature.gauss_newton import GaussNewton
    from curvcli.operators.curvature.hessian import Hessian

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
