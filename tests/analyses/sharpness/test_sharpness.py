"""`sharpness` gives the closed forms of quadratics, and stays or changes under rescaling as theory says."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

import curvcli
from curvcli import analyse
from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.sharpness.result import SharpnessResult
from curvcli.linalg.statistics.student import quantile
from curvcli.objective.objective import Objective
from tests.conftest import MakeObjective
from tests.oracles.dense import dense_hessian, random_data, random_network
from tests.oracles.program import ROOT, answer, invoke
from tests.oracles.surfaces import surface

MLP = str(ROOT / "sample_models" / "digits_mlp.toml")
# A bowl with known eigenvalues, at its minimum.
VALUES = [5.0, 2.0, 0.5, 0.1]


def measured(objective: Objective, *names: str, **options: Any) -> SharpnessResult:
    return analyse("sharpness", Subject(objective=objective), measure=names, **options).result


def bowl(at: list[float] | None = None) -> Objective:
    """L = ½ Σ λᵢ wᵢ²."""
    lambdas = torch.tensor(VALUES, dtype=torch.float64)
    return surface(at or [0.0] * 4, lambda w: 0.5 * (lambdas * w**2).sum())


def test_the_worst_case_of_a_bowl_is_half_lambda_rho_squared() -> None:
    """½ λ ρ² at the minimum: found, no more than the certified bound, and that is near."""
    worst = measured(bowl(), "worst", rho=0.3).worst
    assert worst is not None
    truth = 0.5 * VALUES[0] * 0.3**2
    # An ascent ends where a step gains less than 1e-4.
    assert worst.found == pytest.approx(truth, rel=1e-3)
    assert worst.found is not None
    assert worst.quadratic_upper is not None
    assert worst.found <= truth * (1 + 1e-12) <= worst.quadratic_upper * (1 + 2e-12)
    assert worst.quadratic_upper == pytest.approx(truth, rel=1e-2)


def test_the_worst_case_beside_the_minimum_is_that_of_the_trust_region() -> None:
    """max gᵀδ + ½ δᵀHδ over the ball by its secular equation, (σ − H) δ = g with ‖δ‖ = ρ and σ > λ_max."""
    place = [0.3, -0.2, 0.5, 1.0]
    rho = 0.4
    lambdas = torch.tensor(VALUES, dtype=torch.float64)
    g = lambdas * torch.tensor(place, dtype=torch.float64)
    low, high = VALUES[0] + 1e-12, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if float((g / (middle - lambdas)).norm()) > rho else (low, middle)
        )
    delta = g / (high - lambdas)
    truth = float(g @ delta + 0.5 * delta @ (lambdas * delta))
    worst = measured(bowl(place), "worst", rho=rho, steps=200).worst
    assert worst is not None
    assert worst.found is not None
    assert worst.found == pytest.approx(truth, rel=1e-3)
    assert worst.found <= truth * (1 + 1e-9)
    assert worst.quadratic_upper is not None
    assert worst.quadratic_upper >= truth


def test_the_average_over_noise_is_half_the_trace() -> None:
    """½ σ² tr H for noise of σ, ½ σ² Σ λᵢ wᵢ² for noise in proportion to the weights; within the errors they claim."""
    place = [0.3, -0.2, 0.5, 1.0]
    result = measured(bowl(place), "average", draws=400, rho=0.2, rho_adaptive=0.2)
    sums = (sum(VALUES), sum(v * p**2 for v, p in zip(VALUES, place, strict=True)))
    for mean, trace in zip((result.average, result.average_adaptive), sums, strict=True):
        assert mean is not None
        assert mean.value is not None
        assert mean.standard_error is not None
        assert mean.sigma == pytest.approx(0.1)
        truth = 0.5 * 0.1**2 * trace
        # 99.9 % of such draws; the seed is fixed.
        assert abs(mean.value - truth) < quantile(0.999, 399) * mean.standard_error
        assert mean.standard_error < 0.1 * truth


def test_the_noise_that_raises_a_bowl_by_a_given_amount() -> None:
    """σ = √(2 rise / tr H)."""
    width = measured(bowl(), "pac-bayes", draws=400, rise=0.3).pac_bayes
    assert width is not None
    assert width.value is not None
    assert width.standard_error is not None
    truth = math.sqrt(2 * 0.3 / sum(VALUES))
    assert abs(width.value - truth) < quantile(0.999, 399) * width.standard_error
    assert width.standard_error < 0.1 * truth


def test_noise_that_never_raises_the_loss() -> None:
    """A loss that is bounded below the rise asked for: no width, and a note."""
    found = analyse(
        "sharpness",
        Subject(objective=surface([1.0], lambda w: torch.tanh(w**2).sum())),
        measure=["pac-bayes"],
        rise=5.0,
        draws=4,
    )
    assert found.result.pac_bayes is not None
    assert found.result.pac_bayes.value is None
    assert any("no noise raises" in note for note in found.notes)


def test_the_fisher_rao_norm_of_a_linear_model(make_objective: MakeObjective) -> None:
    """ℓ = (f − y)² with f linear in θ: ⟨θ, ∇ℓ⟩ = 2 (f − y) f, whose mean square is known."""
    x, y = (t.double() for t in random_data(0, 48, 4, 1, "mse"))
    model = nn.Linear(4, 1).double()
    norm = measured(make_objective(model, x, y, "mse", weight_decay=0.3), "fisher-rao").fisher_rao
    with torch.no_grad():
        f = model(x)
        squares = (2 * (f - y) * f).square().flatten()
    assert norm is not None
    assert norm.value == pytest.approx(float(squares.mean().sqrt()), rel=1e-10)
    # The mean of 48 squares, from eight parts: their scatter tells the error to some 27 % (1/√14), allow three times.
    error = float(squares.std() / 48**0.5) / (2 * norm.value)
    assert norm.standard_error == pytest.approx(error, rel=3 / 14**0.5)


def test_relative_flatness_against_the_dense_hessian(make_objective: MakeObjective) -> None:
    """Σ ⟨w_s, w_s'⟩ tr H_{s,s'} by loops over a dense Hessian in float64, for both weights."""
    model = random_network(0, [3, 4, 2], "tanh")
    x, y = random_data(1, 30, 3, 2, "cross_entropy")
    hessian_NN = dense_hessian(model, x, y, "cross_entropy")
    objective = make_objective(model.double(), x.double(), y)
    found = measured(objective, "relative-flatness", probes=3000).relative_flatness
    assert found is not None
    first = 0
    truths = {}
    for name, p in model.named_parameters():
        size = p.numel()
        block = hessian_NN[first : first + size, first : first + size]
        first += size
        if p.dim() == 2:
            d, m = p.shape
            w = p.detach().double()
            truths[name] = sum(
                float(w[s] @ w[t]) * float(block[s * m : (s + 1) * m, t * m : (t + 1) * m].trace())
                for s in range(d)
                for t in range(d)
            )
    assert [layer.name for layer in found.layers] == list(truths)
    told = [(f.value, f.standard_error, truths[f.name]) for f in found.layers]
    for value, error, truth in [*told, (found.value, found.standard_error, sum(truths.values()))]:
        assert error is not None
        assert abs(value - truth) < quantile(0.999, 2999) * error
        assert error < 0.1 * truth


def _relu_network(factor: float) -> nn.Module:
    """W₁ · a and W₂ / a, biases with them: the same function for every a > 0."""
    model = random_network(2, [4, 8, 3], "relu").double()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        parameters["0.weight"].mul_(factor)
        parameters["0.bias"].mul_(factor)
        parameters["2.weight"].div_(factor)
    return model


def test_rescaled_layers_change_what_the_answer_says_they_change() -> None:
    """The same ReLU network with W₁ · 4 and W₂ / 4: to rounding the same where theory says so, another where not.

    A power of two rescales weights to the bit; the draws are the same.
    """
    x, y = random_data(3, 64, 4, 3, "cross_entropy")
    names = ["worst", "average", "pac-bayes", "relative-flatness", "fisher-rao", "m-sharpness"]
    one, other = (
        curvcli.sharpness(_relu_network(a), "cross_entropy", (x.double(), y), measure=names).result
        for a in (1.0, 4.0)
    )
    assert one.loss == pytest.approx(other.loss, rel=1e-12)
    seen = set()
    for field in SharpnessResult.__struct_fields__:
        a, b = getattr(one, field), getattr(other, field)
        if not hasattr(a, "changes_by_rescaling"):
            continue
        first, second = (v.found if hasattr(v, "found") else v.value for v in (a, b))
        seen.add((field, a.changes_by_rescaling))
        if a.changes_by_rescaling:
            assert abs(first - second) > 0.05 * abs(first), field
        else:
            # An ascent and a root are found to 1e-4 and better, from the same points.
            assert first == pytest.approx(second, rel=1e-6), field
    assert len(seen) == 9
    assert {name for name, changes in seen if not changes} == {
        "worst_adaptive", "average_adaptive", "pac_bayes_adaptive", "relative_flatness", "fisher_rao",
    }  # fmt: skip


def test_shards_of_all_samples_are_one_step_of_sam(make_objective: MakeObjective) -> None:
    """m = N: L(θ + ρ g/‖g‖) − L(θ), by torch; and the worst case is no less."""
    model = random_network(4, [4, 6, 3], "tanh").double()
    x, y = random_data(5, 40, 4, 3, "cross_entropy")
    objective = make_objective(copy.deepcopy(model), x.double(), y)
    result = measured(objective, "m-sharpness", "worst", shard=40, rho=0.1)
    parameters = list(model.parameters())
    loss = nn.functional.cross_entropy(model(x.double()), y)
    gradients = torch.autograd.grad(loss, parameters)
    length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    with torch.no_grad():
        for p, g in zip(parameters, gradients, strict=True):
            p.add_(g * (0.1 / length))
        after = nn.functional.cross_entropy(model(x.double()), y)
    assert result.m_sharpness is not None
    assert result.m_sharpness.value == pytest.approx(float(after - loss.detach()), rel=1e-9)
    assert result.worst is not None
    assert result.worst.found is not None
    assert result.worst.found >= float(after - loss.detach()) * (1 - 1e-9)


def test_figures_for_rules_and_comparisons() -> None:
    """`check` and `compare` know the measures by their paths."""
    rules = ["--rule", "sharpness.worst.found < 1", "--rule", "sharpness.pac_bayes.value > 0.01"]
    code, found = answer("check", MLP, "--no-cache", *rules)
    assert code == 0
    assert [r["decision"] for r in found["result"]["targets"][0]["rules"]] == ["pass", "pass"]
    weights = str(ROOT / "sample_models" / "digits_mlp.safetensors")
    both = answer("compare", MLP, weights, weights, "--analysis", "sharpness", "--points", "3")[1]
    paths = [f["path"] for f in both["result"]["figures"]]
    assert "sharpness.fisher_rao.value" in paths
    assert not any(f["beyond"] for f in both["result"]["figures"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rho", "-1"], "above 0"),
        (["--measure", "flattness"], "no measure 'flattness'"),
        (["--draws", "1"], "at least 2"),
        (["--rise", "0"], "above 0"),
    ],
)
def test_wrong_input_gets_the_sentence_that_helps(options: list[str], words: str) -> None:
    done = invoke("sharpness", MLP, *options)
    assert done.exit_code == 2
    assert words in done.stderr


def test_a_comparison_shows_every_measure_before_what_it_was_made_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The figures of all measures are among the rows, in words; radii, seeds and steps are not."""
    monkeypatch.setenv("COLUMNS", "120")  # names are not shortened
    few = ("--batch-size", "32", "--max-batches", "1")
    done = invoke("compare", MLP, MLP, *few, "--analysis", "sharpness")
    assert done.exit_code == 0, done.stderr
    rows = [line.partition("  ")[0] for line in done.stdout.splitlines()]
    for name in (
        "worst rise in a ball",
        "worst rise, adaptive",
        "mean rise under noise",
        "mean rise, adaptive",
        "PAC-Bayes σ",
        "PAC-Bayes σ, adaptive",
        "relative flatness",
        "Fisher-Rao norm",
    ):
        assert name in rows
    assert not any(row.startswith("sharpness.") for row in rows)


def test_time_that_is_up_gives_a_part() -> None:
    """After the first measure: the others are null, and the answer says that it is a part."""
    asked = [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] > 60

    subject = Subject(objective=bowl([0.3, -0.2, 0.5, 1.0]))
    found = analyse("sharpness", subject, Journal(interrupted=stop))
    assert not found.complete
    assert found.result.worst is not None
    assert found.result.fisher_rao is None
    assert found.headline is not None
    assert "Only a part" in found.headline.sentence
