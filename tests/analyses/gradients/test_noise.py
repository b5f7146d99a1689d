"""The gradient's noise in `gradients` is that of a model whose noise is known in closed form."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvcli import analyse
from curvcli.analyses.gradients.result import GradientsResult
from curvcli.analyses.shared.subject import Subject
from curvcli.linalg.statistics.gradient_noise import noise_estimates
from curvcli.linalg.statistics.student import quantile
from tests.conftest import MakeObjective


class Mean(nn.Module):
    """ℓ_i = ½‖θ − x_i‖² as a mean square error: the gradient of sample i is θ − x_i."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(n, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return math.sqrt(x.shape[1] / 2) * (self.theta - x)


N, SAMPLES, SPREAD = 6, 64, 2.0


def measure(
    seed: int, make: MakeObjective, splits: list[int] | None = None, parts: int = 8
) -> GradientsResult:
    generator = torch.Generator().manual_seed(seed)
    x = SPREAD * torch.randn(SAMPLES, N, generator=generator, dtype=torch.float64)
    objective = make(Mean(N), x, torch.zeros_like(x), "mse", splits=splits)
    return analyse("gradients", Subject(objective=objective), parts=parts).result


@pytest.mark.parametrize("splits", [None, [5, 11, 16, 3, 9, 20]])
def test_signal_and_noise_are_unbiased_with_honest_errors(
    splits: list[int] | None, make_objective: MakeObjective
) -> None:
    """θ = 1, x ~ N(0, 4): |G|² = 6 and tr Σ = 24, whatever the sizes of the parts."""
    noises = [measure(seed, make_objective, splits).noise for seed in range(150)]
    for name, truth in (("gradient_square", 6.0), ("trace", 24.0)):
        values = np.array([getattr(n, name) for n in noises])
        errors = np.array([getattr(n, f"{name}_error") for n in noises])
        deviation = values.std(ddof=1)
        # Four standard errors of a mean of 150.
        assert values.mean() == pytest.approx(truth, abs=4 * deviation / math.sqrt(150))
        if name == "gradient_square":
            # Few and unequal parts: the jackknife is right to some tens of percent.
            assert 0.7 < np.sqrt((errors**2).mean()) / deviation < 1.5
        else:
            # A skewed estimate: its interval of 95 % is what counts, which is wider for unequal parts. Two standard
            # errors of a share of 150 are allowed.
            within = np.abs(values - truth) <= quantile(0.95, len(splits or range(8)) - 1) * errors
            assert within.mean() >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / 150)


def test_critical_batch_size_and_signal_to_noise(make_objective: MakeObjective) -> None:
    result = measure(0, make_objective)
    noise = result.noise
    assert noise is not None
    assert noise.parts == 8
    assert noise.trace is not None
    assert noise.gradient_square is not None
    assert noise.critical_batch_size == pytest.approx(noise.trace / noise.gradient_square)
    assert noise.critical_batch_size is not None
    assert noise.critical_batch_size_error is not None
    assert abs(noise.critical_batch_size - 4) < 4 * noise.critical_batch_size_error
    assert noise.signal_to_noise == pytest.approx(
        math.sqrt(noise.gradient_square / (noise.trace / SAMPLES))
    )
    # The only layer holds the only parameter.
    assert result.layers[0].signal_to_noise == pytest.approx(noise.signal_to_noise)


def test_the_estimate_from_single_samples_is_the_textbook_one(
    make_objective: MakeObjective,
) -> None:
    """With one sample a part, tr Σ is the sample variance and |G|² the mean of all pairs of samples."""
    noise = measure(1, make_objective, [1] * SAMPLES, parts=SAMPLES).noise
    generator = torch.Generator().manual_seed(1)
    x = SPREAD * torch.randn(SAMPLES, N, generator=generator, dtype=torch.float64)
    g = 1 - x
    pairs = g @ g.T
    off = (pairs.sum() - pairs.trace()) / (SAMPLES * (SAMPLES - 1))
    assert noise is not None
    assert noise.trace == pytest.approx(float(g.var(0).sum()))
    assert noise.gradient_square == pytest.approx(float(off))


def test_a_gradient_within_its_noise_has_no_critical_batch_size(
    make_objective: MakeObjective,
) -> None:
    torch.manual_seed(0)
    model = Mean(N)
    x = torch.randn(SAMPLES, N, dtype=torch.float64)
    with torch.no_grad():
        model.theta.copy_(x.mean(0))
    objective = make_objective(model, x, torch.zeros_like(x), "mse")
    noise = analyse("gradients", Subject(objective=objective)).result.noise
    assert noise is not None
    assert noise.critical_batch_size is None


def test_one_part_has_no_noise_and_two_have_no_error(make_objective: MakeObjective) -> None:
    context = Subject(
        objective=make_objective(nn.Linear(3, 2), torch.randn(1, 3), torch.randn(1, 2), "mse")
    )
    answer = analyse("gradients", context)
    assert answer.result.noise is None
    assert any("noise" in note for note in answer.notes)
    (two,) = noise_estimates(np.array([[[2.0, 1.0], [1.0, 3.0]]]), np.array([4.0, 4.0]))
    assert two is not None
    assert (two.gradient_square.value, two.gradient_square.standard_error) == (1.0, None)
    assert noise_estimates(np.full((1, 3, 3), np.nan), np.ones(3)) == [None]
    assert noise_estimates(np.ones((1, 1, 1)), np.ones(1)) == [None]
