"""`hessian` is right against dense float64 Hessians and closed forms; the field's wrong results as regressions."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvcli import analyse
from curvcli.analyses.hessian.result import HessianResult
from curvcli.analyses.shared.rules import CHECK_LIMIT
from curvcli.analyses.shared.settings import resolve_target
from curvcli.analyses.shared.subject import Subject
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective as objective_of
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.curvature import Strategy
from curvcli.operators.curvature.hessian import Hessian
from tests.conftest import MakeObjective
from tests.oracles.dense import (
    ACTIVATIONS,
    MEANS,
    dense_hessian,
    dense_hessian_of,
    random_data,
    random_network,
)
from tests.oracles.samples import X50, Y50, objective_for, small


def run(objective: Objective, **options: Any) -> HessianResult:
    return analyse("hessian", Subject(objective=objective), **options).result


@given(
    seed=st.integers(0, 2**31),
    loss=st.sampled_from(sorted(MEANS)),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    hidden=st.lists(st.integers(1, 6), max_size=2),
    ends=st.tuples(st.integers(1, 5), st.integers(2, 4)),
    samples=st.integers(1, 20),
    scale=st.sampled_from([0.3, 1.0, 2.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=250, deadline=None, derandomize=True)
def test_random_networks_against_the_dense_hessian(
    seed: int,
    loss: str,
    activation: str,
    hidden: list[int],
    ends: tuple[int, int],
    samples: int,
    scale: float,
    dtype: torch.dtype,
) -> None:
    """Every interval contains an eigenvalue, the k-th value is the k-th eigenvalue, and the reach holds.

    The reach may fail once in a million runs; that it fails no more often than it says where that is often is
    tested on short runs of Lanczos.
    """
    model = random_network(seed, [ends[0], *hidden, ends[1]], activation, scale)
    x, y = random_data(seed, samples, ends[0], ends[1], loss)
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(model, x, y, loss)).numpy()
    result = run(objective_for(model.to(dtype), x, y, loss), top=4, bottom=2, probability=1 - 1e-6)
    norm = np.abs(eigenvalues).max()
    floor = 1e-12 * norm  # rounding of the dense reference itself
    pairs = [*result.top, *result.bottom]
    truth = [*eigenvalues[::-1][: len(result.top)], *eigenvalues[: len(result.bottom)]]
    assert result.status == "converged"
    for pair, expected in zip(pairs, truth, strict=True):
        assert np.abs(eigenvalues - pair.value).min() <= pair.residual + floor
        assert abs(pair.value - expected) <= pair.residual + 1e-3 * max(abs(expected), 0.01 * norm)
    assert result.reach.lower <= eigenvalues[0] + floor
    assert result.reach.upper >= eigenvalues[-1] - floor


def leading(objective: Objective) -> float:
    return run(objective, top=1, bottom=0, tol=1e-6).top[0].value


TRUTH = float(torch.linalg.eigvalsh(dense_hessian(small(), X50, Y50, "cross_entropy"))[-1])


@pytest.mark.parametrize("splits", [[50], [48, 2], [25, 25], [1] * 50, [7, 13, 30]])
def test_t1_any_split_of_the_data_gives_the_same_digits(
    make_objective: MakeObjective, splits: list[int]
) -> None:
    """To 1e-5 relative, as promised; batches are weighted by their loss terms."""
    assert leading(make_objective(small(), X50, Y50, splits=splits)) == pytest.approx(
        TRUTH, rel=1e-5
    )


def test_t2_ignored_targets_are_no_loss_terms(make_objective: MakeObjective) -> None:
    labels = Y50.clone()
    labels[1:25] = -100
    keep = labels != -100
    truth = float(
        torch.linalg.eigvalsh(dense_hessian(small(), X50[keep], Y50[keep], "cross_entropy"))[-1]
    )
    objective = make_objective(small(), X50, labels, splits=[25, 25])
    assert objective.weight == 26
    assert leading(objective) == pytest.approx(truth, rel=1e-5)


def test_t5_a_second_run_is_the_same_and_leaves_nothing_behind(
    make_objective: MakeObjective,
) -> None:
    model = small()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    objective = make_objective(model, X50, Y50)
    first, second = run(objective), run(objective)
    assert [p.value for p in first.top] == [p.value for p in second.top]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


@pytest.mark.parametrize("micro", [None, 7])
@pytest.mark.parametrize("strategy", ["keep", "rebuild", "finite-difference"])
@pytest.mark.parametrize("options", [{}, {"recheck": 0, "spread": 0}, {"order": "magnitude"}])
def test_eigenvalues_are_certified_with_every_strategy(
    strategy: Strategy,
    micro: int | None,
    options: dict[str, Any],
    make_objective: MakeObjective,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole analysis, in float64 against the dense spectrum."""
    usual = Hessian.__init__

    def forced(self: Hessian, objective: Objective, **settings: Any) -> None:
        if "like" not in settings:
            settings["strategy"] = strategy
        usual(self, objective, **settings)
        if "like" not in settings and micro is not None and strategy == "rebuild":
            self.plan = replace(self.plan, micro_batch=micro)

    monkeypatch.setattr(Hessian, "__init__", forced)
    objective = make_objective(small().double(), X50.double(), Y50, splits=[20, 30])
    values = torch.linalg.eigvalsh(dense_hessian(small(), X50, Y50, "cross_entropy")).numpy()
    result = run(objective, top=4, bottom=2, **options)
    assert result.products == strategy
    truth = (
        values[::-1] if options.get("order") != "magnitude" else values[np.argsort(-np.abs(values))]
    )
    for pair, expected in zip(result.top, truth, strict=False):
        assert abs(pair.value - expected) <= pair.residual + 1e-3 * abs(expected)
    for pair, expected in zip(result.bottom, values, strict=False):
        assert np.abs(values - pair.value).min() <= pair.residual + 1e-12
        assert abs(pair.value - expected) <= pair.residual + 1e-3 * max(
            abs(expected), 0.01 * np.abs(values).max()
        )


def test_linear_regression_has_its_closed_form(make_objective: MakeObjective) -> None:
    """L = mean (Xw + b - y)² has the Hessian (2/N) [X 1]ᵀ[X 1]."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 6, generator=generator), torch.randn(60, 1, generator=generator)
    result = run(make_objective(nn.Linear(6, 1), x, y, "mse"), top=7, bottom=1)
    design = torch.cat([x, torch.ones(60, 1)], 1).double()
    expected = torch.linalg.eigvalsh(2 / 60 * design.T @ design).flip(0)
    for pair, value in zip(result.top, expected.tolist(), strict=True):
        assert abs(pair.value - value) <= pair.residual
    assert result.reach.lower > 0


def test_several_outputs_repeat_every_eigenvalue(make_objective: MakeObjective) -> None:
    """mean (XW - Y)² over m outputs has (2/(N m)) I_m ⊗ XᵀX: each eigenvalue m times."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 6, generator=generator), torch.randn(60, 4, generator=generator)
    result = run(make_objective(nn.Linear(6, 4, bias=False), x, y, "mse"), top=8, bottom=0)
    values = torch.linalg.eigvalsh(2 / 240 * (x.T @ x).double()).flip(0)[:2].repeat_interleave(4)
    for pair, value in zip(result.top, values.tolist(), strict=True):
        assert abs(pair.value - value) <= pair.residual


def test_batch_standard_error_is_that_of_the_mean(make_objective: MakeObjective) -> None:
    """Four batches of one linear regression: vᵀH_b v from the closed form, weighted by hand."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 3, generator=generator), torch.randn(40, 1, generator=generator)
    model = nn.Linear(3, 1, bias=False)
    sizes = [5, 10, 10, 15]
    result = run(make_objective(model, x, y, "mse", splits=sizes), top=1, bottom=0, tol=1e-7)
    values, vectors = torch.linalg.eigh(2 / 40 * (x.T @ x).double())
    v, top = vectors[:, -1], float(values[-1])
    quotients = [float(2 / len(b) * (b.double() @ v).square().sum()) for b in x.split(sizes)]
    variance = (
        sum((s / 40) ** 2 * (q - top) ** 2 for s, q in zip(sizes, quotients, strict=True)) * 4 / 3
    )
    assert result.top[0].batch_standard_error == pytest.approx(math.sqrt(variance), rel=1e-3)


def test_weight_decay_shifts_the_spectrum(make_objective: MakeObjective) -> None:
    plain = run(make_objective(small(), X50, Y50), tol=1e-6)
    decayed = run(make_objective(small(), X50, Y50, weight_decay=0.5), tol=1e-6)
    for a, b in zip(plain.top, decayed.top, strict=True):
        assert b.value == pytest.approx(a.value + 0.5, abs=1e-5)


def test_a_block_of_parameters_is_the_block_of_the_matrix(make_objective: MakeObjective) -> None:
    h_NN = dense_hessian(small(), X50, Y50, "cross_entropy")
    block = h_NN[25:, 25:]  # 2.weight and 2.bias come after the 25 parameters of the first layer
    objective = make_objective(small(), X50, Y50, select=["2.*"])
    assert objective.names == ["2.weight", "2.bias"]
    result = run(objective, top=3, bottom=0)
    expected = torch.linalg.eigvalsh(block).flip(0)[:3]
    for pair, value in zip(result.top, expected.tolist(), strict=True):
        assert abs(pair.value - value) <= pair.residual


class Tied(nn.Module):
    """The output projection is the input projection."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x)))
        return out


def test_tied_parameters_count_once(make_objective: MakeObjective) -> None:
    model = Tied()
    objective = make_objective(model, X50, Y50)
    assert objective.n == 16 + 4 + 4

    def value(m: nn.Module, p: dict[str, Tensor]) -> Tensor:
        w = p["first.weight"]
        out = torch.tanh(X50.double() @ w.T + p["first.bias"]) @ w.T + p["second.bias"]
        return MEANS["cross_entropy"](out, Y50)

    truth = torch.linalg.eigvalsh(dense_hessian_of(model, value))
    assert leading(objective) == pytest.approx(float(truth[-1]), rel=1e-5)


def test_frozen_and_unreached_parameters(make_objective: MakeObjective) -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(9, 9)
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(torch.tanh(self.frozen(x)))
            return out

    objective = make_objective(Partly(), X50, Y50)
    assert objective.n == 15 + 90
    assert any("frozen" in note for note in objective.notes)
    operator = Hessian(objective)
    assert operator.matvec(torch.ones(operator.n))[15:].abs().max() == 0


def test_a_linear_loss_has_no_curvature(make_objective: MakeObjective) -> None:
    objective = objective_of(
        nn.Linear(3, 1), [Batch(torch.ones(4, 3), 4)], lambda m, d: (m(d).sum(), 4.0)
    )
    result = run(objective, top=2, bottom=1)
    assert [p.value for p in result.top] == [0.0, 0.0]


def test_wrong_backward_is_reported() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            (x,) = ctx.saved_tensors
            return grad * 3 * x.detach() ** 2  # the second derivative is lost

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = random_network(0, [4, 3], "tanh")[0]

        def forward(self, x: Tensor) -> Tensor:
            return Wrong.apply(self.linear(x))  # type: ignore[no-any-return]

    context = Subject(objective=objective_for(Net(), X50, Y50, "cross_entropy"))
    answer = analyse("hessian", context, top=2, bottom=0)
    (finding,) = [f for f in answer.findings if f.rule == "hessian.products"]
    assert finding.severity == "error"


def test_kinks_are_told_from_a_wrong_backward(samples, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A ReLU network's product differs from a finite step across kinks; in float64 it does not."""
    spec, _ = resolve_target(str(samples / "digits_cnn.toml"), {}, ("hessian",))
    context = Subject(spec)
    answer = analyse("hessian", context, top=1, bottom=0)
    assert [f.rule for f in answer.findings] == ["hessian.kinks"]
    assert answer.findings[0].severity == "note"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_in_float32_are_no_wrong_backward(dtype: torch.dtype) -> None:
    """As losses and normalisations of language models: differences over tiny steps are noise then."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 3))
            self.memory = torch.zeros(0)

        def forward(self, x: Tensor) -> Tensor:
            # What is written into a tensor of float32 is not lifted with the rest. A large constant takes digits away,
            # as it does in sums over many tokens.
            kept = self.memory.new_zeros(len(x), 3).copy_(self.net(x))
            return ((kept + 1000.0) - 1000.0).to(x.dtype)

    model = Net().to(dtype)
    context = Subject(objective=objective_for(model, X50.to(dtype), Y50, "cross_entropy"))
    answer = analyse("hessian", context, top=2, bottom=0)
    result = answer.result
    assert result.hvp_check is not None
    assert not [f.rule for f in answer.findings if f.severity == "error"]
    if dtype == torch.float64:
        assert result.hvp_check > CHECK_LIMIT
        (finding,) = [f for f in answer.findings if f.rule == "hessian.single-precision"]
        assert "float32" in finding.message


class Attention(nn.Module):
    """Fused attention, with ``grouped`` as if heads shared keys; `fused=False` writes the same out by hand."""

    def __init__(self, fused: bool, grouped: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.grouped = grouped
        self.fused, self.project, self.head = fused, nn.Linear(4, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).view(len(x), -1, 2, 12).transpose(1, 2).chunk(3, -1)
        if self.fused:
            out = nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=self.grouped
            )
        else:
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            future = torch.ones(scores.shape[-2:]).triu(1).bool()
            out = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        logits: Tensor = self.head(out.transpose(1, 2).flatten(2)[:, -1])
        return logits


def test_fused_attention_is_replaced_and_right(make_objective: MakeObjective) -> None:
    x = torch.randn(10, 6, 4, generator=torch.Generator().manual_seed(0))
    fused = make_objective(Attention(True), x, Y50[:10])
    grouped = make_objective(Attention(True, grouped=True), x, Y50[:10])
    plain = make_objective(Attention(False), x, Y50[:10])
    # Two orders of float32 operations: 1e-4 relative.
    assert leading(fused) == pytest.approx(leading(plain), rel=1e-4)
    assert leading(grouped) == pytest.approx(leading(plain), rel=1e-4)
    assert not fused.notes
    assert any("fused attention" in note for note in grouped.notes)
    assert not plain.notes


def test_operation_without_second_derivative_falls_back_to_differences() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(x)
            return torch.sin(x)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            return grad * torch.cos(ctx.saved_tensors[0])

    class Net(nn.Module):
        def __init__(self, function: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.function, self.linear = function, nn.Linear(4, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(x)
            return Once.apply(out) if self.function else torch.sin(out)

    tried = objective_for(Net(True), X50, Y50, "cross_entropy")
    truth = objective_for(Net(False), X50, Y50, "cross_entropy")
    result = run(tried, top=2, bottom=1)
    expected = run(truth, top=2, bottom=1)
    assert result.products == "finite-difference"
    assert any("central differences" in note for note in tried.notes)
    # Held against another step: the same one would agree to the last digit and say nothing.
    assert result.hvp_check is not None
    assert 0 < result.hvp_check < 1e-6
    for a, b in zip([*result.top, *result.bottom], [*expected.top, *expected.bottom], strict=True):
        assert a.value == pytest.approx(b.value, abs=1e-7)


def test_batch_norm_in_both_modes_leaves_its_buffers(make_objective: MakeObjective) -> None:
    def net() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, 3)
        )

    for train in (False, True):
        model = net()
        before = {n: b.clone() for n, b in model.named_buffers()}
        result = run(make_objective(model, X50, Y50, train_mode=train), top=2, bottom=1)
        assert all(torch.equal(before[n], b) for n, b in model.named_buffers())
        assert (
            result.top[0].batch_standard_error is None
        ) == train  # batch statistics cannot be split
        assert result.status == "converged"


def test_a_cancellation_in_float32_is_in_the_residual() -> None:
    """A saturated sigmoid: σ(1 − σ) loses digits alike in every product, which neither residual nor asymmetry sees.

    The Hessian of softplus(wx + b) − y (wx + b) is σ(1 − σ) [x 1]ᵀ[x 1], with σ(1 − σ) = 1 / (2 + 2 cosh z).
    """
    for z in (5.0, 8.0, 11.0):
        model = nn.Linear(1, 1)
        with torch.no_grad():
            model.weight.fill_(z)
            model.bias.zero_()
        result = run(
            objective_for(model, torch.ones(1, 1), torch.zeros(1, 1), "bce_with_logits"),
            top=1,
            bottom=0,
        )
        truth = 2 / (2 + 2 * math.cosh(z))
        assert abs(result.top[0].value - truth) <= result.top[0].residual
        assert abs(result.top[0].value - truth) > 0  # else there is nothing to see


def test_a_network_that_amplifies_rounding_is_said_to(samples: Path) -> None:
    """Gradients of 1e5: float32 and float64 differ in the first digits, and nothing counts as converged."""
    found = {}
    for dtype in ("float32", "float64"):
        spec, _ = resolve_target(str(samples / "exploding.toml"), {"dtype": dtype}, ("hessian",))
        context = Subject(spec)
        answer = analyse("hessian", context, top=2, bottom=1)
        found[dtype] = answer.result
        rules = {f.rule for f in answer.findings}
        assert ("hessian.precision" in rules) == (dtype == "float32")
    assert not any(p.converged for p in found["float32"].top)
    assert all(p.converged for p in found["float64"].top)


def test_values_do_not_depend_on_float_or_double_beyond_their_residual(
    make_objective: MakeObjective,
) -> None:
    single = run(make_objective(small(), X50, Y50))
    double = run(make_objective(small().double(), X50.double(), Y50))
    for a, b in zip(single.top, double.top, strict=True):
        assert abs(a.value - b.value) <= a.residual + b.residual
