"""`hessian --per-layer` has the spectra of dense blocks and closed forms, within the errors that it states."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from torch import Tensor, nn
from typer.testing import CliRunner

from curvcli import analyse
from curvcli.analyses.hessian.layers_result import PerLayer
from curvcli.analyses.hessian.result import HessianResult
from curvcli.analyses.hessian.view import view
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.subject import Subject
from curvcli.cli.main import make_app
from curvcli.linalg.lanczos.alignment import space_error, vector_errors
from curvcli.linalg.lanczos.factorization import start
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.stochastic.heterogeneity import (
    densities,
    heterogeneity,
    js_distance,
    rule_of,
    with_zeros,
)
from curvcli.linalg.stochastic.probes import Sums, ratio
from curvcli.linalg.stochastic.quadrature import Nodes
from curvcli.loading.loss import loss_terms
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective as objective_of
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.curvature import Strategy
from curvcli.operators.curvature.diagonal_blocks import DiagonalBlocks, blocks_of
from curvcli.operators.curvature.gauss_newton import GaussNewton
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.curvature.layer_spectra import block_ends, leading, sample_norms
from curvcli.report.data import Bars
from tests.conftest import MakeObjective
from tests.oracles.dense import dense_hessian, dense_hessian_of, random_data, random_network
from tests.oracles.samples import X50, Y50, small

X, Y = random_data(3, 40, 6, 3, "cross_entropy")


def network() -> nn.Sequential:
    """Blocks of 56, 72, 45 and 18 parameters: the last is computed whole."""
    return random_network(4, [6, 8, 8, 5, 3], "tanh", 1.5)


def cut(h_NN: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """The diagonal blocks of a dense Hessian, by the owner of the parameters."""
    out: dict[str, list[int]] = {}
    first = 0
    for name, p in model.named_parameters():
        out.setdefault(name.rpartition(".")[0], []).extend(range(first, first + p.numel()))
        first += p.numel()
    return {name: h_NN[where][:, where] for name, where in out.items()}


def layers(
    objective: Objective, **options: Any
) -> tuple[HessianResult, PerLayer, Answer[HessianResult]]:
    answer = analyse("hessian", Subject(objective=objective), **{"per_layer": True, **options})
    assert answer.result.per_layer is not None
    return answer.result, answer.result.per_layer, answer


@pytest.mark.parametrize("strategy", ["keep", "rebuild", "finite-difference"])
def test_block_products_are_those_of_the_dense_blocks(
    make_objective: MakeObjective, strategy: Strategy
) -> None:
    objective = make_objective(network().double(), X.double(), Y, splits=[10, 30], weight_decay=0.1)
    operator = Hessian(objective, strategy=strategy)
    blocks = DiagonalBlocks(operator, blocks_of(objective, "layer"))
    dense = cut(dense_hessian(network(), X, Y, "cross_entropy", weight_decay=0.1), network())
    generator = torch.Generator().manual_seed(0)
    vectors: list[Tensor | None] = [
        torch.randn(b.n, generator=generator, dtype=torch.float64) for b in blocks.blocks
    ]
    vectors[1] = None
    found = blocks.products(vectors)
    assert [b.name for b in blocks.blocks] == list(dense)
    tolerance = 1e-7 if strategy == "finite-difference" else 1e-12
    for v_N, product_N, h_NN in zip(vectors, found, dense.values(), strict=True):
        if v_N is None:
            assert product_N is None
        else:
            assert product_N is not None
            assert torch.allclose(product_N, h_NN @ v_N, atol=tolerance, rtol=0)


def test_blocks_of_another_matrix_are_cut_out_of_its_products(
    make_objective: MakeObjective,
) -> None:
    """For a linear model Gauss-Newton is the Hessian, block by block."""
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 3)).double()
    objective = make_objective(model, X.double(), Y)
    operator = GaussNewton(objective)
    blocks = DiagonalBlocks(operator, blocks_of(objective, "layer"))
    vectors: list[Tensor | None] = [torch.ones(b.n, dtype=torch.float64) for b in blocks.blocks]
    dense = cut(dense_hessian(model, X, Y, "cross_entropy"), model)
    for product_N, h_NN in zip(blocks.products(vectors), dense.values(), strict=True):
        assert product_N is not None
        assert torch.allclose(product_N, h_NN.sum(1), atol=1e-12)


def test_every_layer_against_its_dense_block(make_objective: MakeObjective) -> None:
    """Ends within their residuals, traces and norms within four standard errors, shares within their bounds."""
    h_NN = dense_hessian(network(), X, Y, "cross_entropy")
    basis = torch.linalg.eigh(h_NN).eigenvectors
    dense = cut(h_NN, network())
    objective = make_objective(network().double(), X.double(), Y)
    result, found, _ = layers(
        objective, top=4, bottom=2, tol=1e-6,
        layer_probes=16,
    )  # fmt: skip
    assert [layer.name for layer in found.layers] == list(dense)
    squares = 0.0
    for layer, block in zip(found.layers, dense.values(), strict=True):
        ends = torch.linalg.eigvalsh(block)
        squares += float(block.square().sum())
        assert layer.parameters == len(block)
        assert layer.lambda_max.converged
        assert layer.lambda_min.converged
        assert abs(layer.lambda_max.value - float(ends[-1])) <= layer.lambda_max.residual + 1e-12
        assert abs(layer.lambda_min.value - float(ends[0])) <= layer.lambda_min.residual + 1e-12
        assert layer.reach.lower <= float(ends[0]) + 1e-12
        assert layer.reach.upper >= float(ends[-1]) - 1e-12
        for sampled, truth in (
            (layer.trace, float(block.trace())),
            (layer.frobenius, float(block.norm())),
            (layer.per_parameter.trace, float(block.trace()) / len(block)),
        ):
            assert sampled.value is not None
            assert sampled.standard_error is not None
            assert abs(sampled.value - truth) <= 4 * sampled.standard_error + 1e-12
            # Hutchinson: Var zᵀAz ≤ 2 ‖A‖_F² for random signs.
            assert sampled.standard_error <= math.sqrt(2 / 16) * float(block.norm())
    assert found.layers[-1].trace.standard_error == 0.0  # 18 parameters: computed whole
    share = found.diagonal_share
    assert share.value is not None
    assert share.standard_error is not None
    assert 0 < share.standard_error < 0.02
    assert abs(share.value - squares / float(h_NN.square().sum())) <= 4 * share.standard_error
    true_vectors = [basis[:, -1 - k] for k in range(4)] + [basis[:, k] for k in range(2)]
    for k, v_N in enumerate(true_vectors):
        first = 0
        for layer, block in zip(found.layers, dense.values(), strict=True):
            truth = float(v_N[first : first + len(block)].square().sum())
            first += len(block)
            bound = layer.shares_residual[k]
            assert bound is not None
            assert abs(layer.shares[k] - truth) <= bound + 1e-10
        assert sum(layer.shares[k] for layer in found.layers) == pytest.approx(1)
    gradient = objective.gradient().double()
    overlap = found.gradient_overlap
    truth = float((basis[:, -4:].T @ gradient).square().sum() / gradient.square().sum())
    assert overlap.value is not None
    assert overlap.residual is not None
    assert abs(overlap.value - truth) <= overlap.residual + 1e-10
    assert (overlap.vectors, result.per_layer) == (4, found)


def test_densities_and_heterogeneity_against_dense_blocks(make_objective: MakeObjective) -> None:
    dense = cut(dense_hessian(network(), X, Y, "cross_entropy"), network())
    _, found, _ = layers(make_objective(network().double(), X.double(), Y), layer_density=16)
    grid = np.array(found.grid)
    spacing = grid[1] - grid[0]
    distances = found.heterogeneity
    assert distances is not None
    curves = []
    for layer, block in zip(found.layers, dense.values(), strict=True):
        ends = torch.linalg.eigvalsh(block).numpy()
        bells = np.exp(-((grid[:, None] - ends) ** 2) / (2 * distances.resolution**2))
        curve = bells.mean(1) / (distances.resolution * math.sqrt(2 * math.pi))
        curves.append(curve)
        assert layer.density is not None
        assert np.sum(layer.density) * spacing == pytest.approx(1)
        errors = np.array(layer.density_standard_error)
        # In the mean a normal error is 0.8 standard errors; 1e-3: rounding of a rule that is exact.
        distance = np.abs(np.array(layer.density) - curve).sum() * spacing
        assert distance <= 2 * errors.sum() * spacing + 1e-3
        assert errors.sum() * spacing < 0.2
    pairs = [(i, j) for i in range(4) for j in range(i)]
    truth = np.mean([_distance(curves[i], curves[j]) for i, j in pairs])
    assert distances.mean.value is not None
    assert distances.mean.standard_error is not None
    assert abs(distances.mean.value - truth) <= 4 * distances.mean.standard_error
    assert distances.mean.standard_error < 0.1


def _distance(p: Any, q: Any) -> float:
    """By entropies: √(H(m) − (H(p) + H(q))/2)."""
    p, q = p / p.sum(), q / q.sum()

    def entropy(x: Any) -> float:
        x = x[x > 0]
        return float(-(x * np.log2(x)).sum())

    return math.sqrt(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2)


def test_js_distance_has_its_known_values() -> None:
    """0 for equal densities, 1 for disjoint ones, √(1 − ¾ log₂ 3 / … ) of scipy for one in between."""
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.0, 1.0])
    assert js_distance(p, p) == 0
    assert js_distance(p, q) == pytest.approx(1)
    # m = (¼, ½, ¼): ½ (½ log₂ 2 + ½ log₂ 1) · 2 = ½ bit.
    assert js_distance(p, np.array([0.0, 0.5, 0.5])) == pytest.approx(math.sqrt(0.5))


def test_independent_layers_share_nothing(make_objective: MakeObjective) -> None:
    """A linear model has one layer, which holds all of H; a zero block is no obstacle."""
    _, found, _ = layers(make_objective(nn.Linear(6, 3).double(), X.double(), Y), top=2, bottom=0)
    assert (found.diagonal_share.value, found.diagonal_share.standard_error) == (1.0, 0.0)
    assert found.heterogeneity is None

    class Apart(nn.Module):
        """out = a(x): the other layer has no influence."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(x) + 0.0 * self.b(torch.ones(8, dtype=x.dtype)).sum()
            return y

    _, found, _ = layers(make_objective(Apart().double(), X.double(), Y), layer_density=2)
    idle = next(layer for layer in found.layers if layer.name == "b")
    assert (idle.lambda_max.value, idle.lambda_min.value, idle.trace.value) == (0, 0, 0)
    share = found.diagonal_share
    assert share.value is not None
    assert share.standard_error is not None
    assert abs(share.value - 1) <= 4 * share.standard_error


class Tied(nn.Module):
    """Rows that no sample looks up, a shared weight, a numbered list, an own parameter; registered backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 30, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(2)
        )
        self.embedding = nn.Embedding(200, 4)
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.shift
        for block in self.blocks:
            x = x + block(x)
        y: Tensor = self.head(x)
        return y


def test_layers_come_in_execution_order_and_blocks_by_their_number() -> None:
    torch.manual_seed(0)
    model = Tied().double()
    tokens, labels = torch.arange(12), torch.arange(12)
    objective = objective_of(
        model, [Batch(((tokens,), {}, labels), 12)], loss_terms("cross_entropy", {})
    )
    assert [b.name for b in blocks_of(objective, "layer")] == [
        "Tied", "embedding", "blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2", "head",
    ]  # fmt: skip
    assert [b.name for b in blocks_of(objective, "block")] == [
        "Tied", "embedding", "blocks.0", "blocks.1", "head",
    ]  # fmt: skip
    result, found, _ = layers(objective, per_layer=False, per_block=True)
    assert result.untouched == 188 * 4

    def value(m: nn.Module, p: dict[str, Tensor]) -> Tensor:
        out = torch.func.functional_call(m, p, (tokens,))
        return -torch.log_softmax(out, 1)[torch.arange(12), labels].mean()

    h_NN = dense_hessian_of(model, value)
    where: dict[str, list[int]] = {}
    first = 0
    for name, p in model.named_parameters():
        owner = name.rpartition(".")[0] or "Tied"
        owner = ".".join(owner.split(".")[:2])
        where.setdefault(owner, []).extend(range(first, first + p.numel()))
        first += p.numel()
    for layer in found.layers:
        block = h_NN[where[layer.name]][:, where[layer.name]]
        ends = torch.linalg.eigvalsh(block)
        assert layer.parameters == len(block)
        assert abs(layer.lambda_max.value - float(ends[-1])) <= 1e-3 * float(ends.abs().max())
        assert abs(layer.lambda_min.value - float(ends[0])) <= 1e-3 * float(ends.abs().max())
        assert layer.reach.lower <= float(ends[0]) + 1e-12


def test_the_picture_of_layers_has_the_figures_of_the_answer(make_objective: MakeObjective) -> None:
    """A bar for each end of each layer's spectrum with its residual, beside the eigenvalues of the whole."""
    result, found, _ = layers(make_objective(small().double(), X50.double(), Y50))
    (bars,) = (b for b in view(result) if isinstance(b, Bars))
    assert list(bars.names) == [layer.name for layer in found.layers]
    for group, end in zip(bars.groups, ("lambda_max", "lambda_min"), strict=True):
        assert group.values == [getattr(layer, end).value for layer in found.layers]
        assert group.errors == [getattr(layer, end).residual for layer in found.layers]


def test_a_budget_that_runs_out_is_said(make_objective: MakeObjective) -> None:
    _, found, answer = layers(
        make_objective(network(), X, Y), max_matvecs=4, top=1, bottom=0, layer_density=2
    )
    assert not answer.complete
    assert "hessian.layers-not-converged" in {f.rule for f in answer.findings}
    assert not found.layers[0].lambda_max.converged


def symmetric(values: Any, generator: np.random.Generator) -> Any:
    q, _ = np.linalg.qr(generator.standard_normal((len(values), len(values))))
    return q * values @ q.T


def test_intervals_of_trace_and_diagonal_share_cover_the_truth() -> None:
    """In 93 to 97 % of 500 runs, on a prescribed matrix of three blocks with outliers at both ends.

    Eight probes, seven degrees of freedom; ten eigenvectors are taken out of the whole and of each block.
    """
    generator = np.random.default_rng(1)
    sizes, k = [60, 120, 100], 10
    n = sum(sizes)
    h = symmetric(np.r_[30, 12, 8, 5, 3, 2, -1, np.exp(generator.uniform(-6, 0, n - 7))], generator)
    places = [slice(b - s, b) for s, b in zip(sizes, np.cumsum(sizes), strict=True)]
    truth = sum((h[p, p] ** 2).sum() for p in places) / (h**2).sum()

    def leading(a: Any) -> Any:
        values, vectors = np.linalg.eigh(a)
        return vectors[:, np.argsort(-np.abs(values))[:k]]

    whole = leading(h)
    own = [leading(h[p, p]) for p in places]
    known = sum(((h[p, p] @ v) ** 2).sum() for p, v in zip(places, own, strict=True))
    quantile = student.ppf(0.975, 7)
    held = {"share": 0, "trace": 0}
    for _ in range(500):
        z = generator.integers(0, 2, (n, 8)) * 2.0 - 1
        below = Sums(
            ((h @ whole) ** 2).sum(), list(((h @ (z - whole @ (whole.T @ z))) ** 2).sum(0))
        )
        parts = [z[p] - v @ (v.T @ z[p]) for p, v in zip(places, own, strict=True)]
        products = [h[p, p] @ part for p, part in zip(places, parts, strict=True)]
        share = ratio(Sums(known, list(sum((w**2).sum(0) for w in products))), below)
        first = Sums(
            float(np.trace(own[0].T @ h[places[0], places[0]] @ own[0])),
            list((parts[0] * products[0]).sum(0)),
        ).estimate()
        for name, found, true in (
            ("share", share, truth),
            ("trace", first, np.trace(h[places[0], places[0]])),
        ):
            assert found is not None
            assert found.standard_error is not None
            held[name] += abs(found.value - true) <= quantile * found.standard_error
    assert all(0.93 * 500 <= count <= 0.97 * 500 for count in held.values()), held


def test_intervals_cover_the_truth_on_a_network(make_objective: MakeObjective) -> None:
    """The same for a network by the program's own code: 500 seeds, everything else as it is run."""
    h_NN = dense_hessian(network(), X, Y, "cross_entropy")
    dense = list(cut(h_NN, network()).values())
    objective = make_objective(network().double(), X.double(), Y)
    blocks = DiagonalBlocks(Hessian(objective), blocks_of(objective, "layer"))
    spectra = block_ends(
        blocks, tol=1e-3, max_matvecs=100, capacity=100, seed=0, probability=1e-3,
        stop=lambda: None, progress=lambda _: None,
    )  # fmt: skip
    state = start(blocks.operator, 100, 0)
    lanczos(blocks.operator, Wanted(10, 3), state=state)
    known = leading(state)
    truth = float(sum(b.square().sum() for b in dense) / h_NN.square().sum())
    quantile, share, traces = student.ppf(0.975, 7), 0, 0
    for seed in range(500):
        generator = torch.Generator().manual_seed(seed)
        square = sample_norms(blocks, spectra, known, 8, generator, lambda: None, lambda _: None)
        samples = [sum(s) for s in zip(*(b.square.samples_S for b in spectra), strict=True)]
        found = ratio(Sums(sum(b.square.known for b in spectra), samples), square)
        trace = spectra[seed % 3].trace.estimate()
        assert found is not None
        assert found.standard_error is not None
        assert trace is not None
        assert trace.standard_error is not None
        share += abs(found.value - truth) <= quantile * found.standard_error
        true_trace = float(dense[seed % 3].trace())
        traces += abs(trace.value - true_trace) <= quantile * trace.standard_error
    assert 0.93 * 500 <= share <= 0.97 * 500
    assert 0.93 * 500 <= traces <= 0.97 * 500


def test_intervals_of_the_heterogeneity_cover_the_truth() -> None:
    """In 93 to 97 % of 500 runs: three prescribed spectra, four probes of 24 Lanczos steps."""
    generator = np.random.default_rng(0)
    spectra = [
        np.r_[out, scale * generator.uniform(-0.2, 1, n - len(out))]
        for out, scale, n in (([30, 12, 8], 1, 200), ([25, 3], 1, 150), ([30, 12, 8], 4, 200))
    ]

    def rule(values: Any) -> Nodes:
        q = generator.standard_normal(len(values))
        basis = [q / np.linalg.norm(q)]
        alphas, betas = [], []
        for _ in range(24):
            w = values * basis[-1]
            alphas.append(float(w @ basis[-1]))
            for _ in range(2):
                w = w - np.array(basis).T @ (np.array(basis) @ w)
            betas.append(float(np.linalg.norm(w)))
            basis.append(w / betas[-1])
        return rule_of(alphas, betas)

    true = heterogeneity(densities([[Nodes(v, np.full(len(v), 1 / len(v)))] for v in spectra]))
    assert true is not None
    quantile, held = student.ppf(0.975, 3), 0
    for _ in range(500):
        found = heterogeneity(densities([[rule(v) for _ in range(4)] for v in spectra]))
        assert found is not None
        assert found.mean.standard_error is not None
        held += abs(found.mean.value - true.mean.value) <= quantile * found.mean.standard_error
    assert 0.93 * 500 <= held <= 0.97 * 500


def test_rows_that_were_left_out_are_an_atom_at_zero() -> None:
    rule = with_zeros(Nodes(np.array([2.0, 3.0]), np.array([0.25, 0.75])), 0.5)
    assert rule.theta_M.tolist() == [2.0, 3.0, 0.0]
    assert rule.weights_M.tolist() == [0.125, 0.375, 0.5]


def test_vectors_of_close_eigenvalues_have_no_bound() -> None:
    """Angles from residual and gap; on a 2 × 2 matrix the bound is close to the truth."""
    ritz = np.array([1.0, 2.0, 2.0005])
    first, second, third = vector_errors([2.0005, 2.0, 1.0], [1e-3, 1e-3, 1e-3], ritz)
    assert (first, second) == (None, None)
    assert third == pytest.approx(1e-3 / (1 - 1e-3))
    assert space_error([2.0005, 2.0], [1e-3, 1e-3], [(1.0, 1e-3)], ritz) == pytest.approx(
        math.sqrt(2) * 1e-3 / (1 - 1e-3)
    )
    a, angle = np.diag([3.0, 1.0]), 0.01
    v = np.array([math.cos(angle), math.sin(angle)])
    theta = v @ a @ v
    residual = float(np.linalg.norm(a @ v - theta * v))
    (bound,) = vector_errors([theta], [residual], np.array([theta]))
    assert bound == 0.0  # nothing else was seen
    (bound, _) = vector_errors([theta, 1.0], [residual, 0.0], np.array([theta, 1.0]))
    assert bound is not None
    assert math.sin(angle) <= bound <= 1.01 * math.sin(angle)


def test_a_user_sees_the_layers_and_the_json_holds_them(samples: Path) -> None:
    target = str(samples / "digits_mlp.toml")
    shown = CliRunner().invoke(make_app(), ["hessian", target, "--per-layer", "--quiet"])
    assert shown.exit_code == 0
    rows = [line for line in shown.stdout.splitlines() if line.lstrip().startswith(("fc", "out "))]
    assert len(rows) == 6
    assert max(map(len, rows)) <= 80
    assert "share of ‖H‖² in the layers" in shown.stdout
    done = CliRunner().invoke(make_app(), ["hessian", target, "--per-layer", "--format", "json"])
    found = json.loads(done.stdout)["result"]["per_layer"]
    assert [layer["name"] for layer in found["layers"]] == ["fc1", "fc2", "out"]
    assert sum(layer["parameters"] for layer in found["layers"]) == 17226
    assert all(a["shares_residual"] == b["shares_residual"] for a, b in pairwise(found["layers"]))
    both = CliRunner().invoke(make_app(), ["hessian", target, "--per-layer", "--per-block"])
    assert both.exit_code == 2
    assert "choose one of them" in both.output


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), ["0", "1"]),
        (nn.Sequential(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4)), nn.Linear(4, 3)), ["0", "1"]),
        (
            nn.Sequential(
                nn.ModuleDict(
                    {"word": nn.Linear(6, 6), "layer": nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 3)])}
                )
            ),
            ["0.word", "0.layer.0", "0.layer.1"],
        ),
    ],
)  # fmt: skip
def test_a_leading_number_is_a_block_only_in_a_plain_sequence(
    model: nn.Module, expected: list[str]
) -> None:
    def value(m: nn.Module, data: Any) -> tuple[Tensor, float]:
        x = sum((p.square().sum() for p in m.parameters()), torch.zeros(()))
        return x, 1.0

    objective = objective_of(model, [Batch(None, 1, splittable=False)], value)
    assert [b.name for b in blocks_of(objective, "block")] == expected
