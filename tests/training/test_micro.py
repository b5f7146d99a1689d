"""Gradients of micro-batches: cosines and the noise scale against closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from curvcli.training.micro import MicroBatches


def accumulated(gradients: list[list[float]], scale: float = 1.0) -> dict[str, float]:
    """The figures of an accumulation whose backward passes add these."""
    weight = nn.Parameter(torch.zeros(len(gradients[0])))
    weight.grad = torch.zeros_like(weight)
    micro = MicroBatches()
    for gradient in gradients:
        weight.grad += scale * torch.tensor(gradient)
        micro.add([weight], 4)
    return micro.figures()


def test_cosines_are_those_of_the_angles() -> None:
    """0, 60 and 180 degrees between them; one pair of three has a negative cosine twice."""
    at = [[math.cos(a), math.sin(a)] for a in (0.0, math.pi / 3, math.pi)]
    found = accumulated(at)
    # cosines 1/2, -1 and -1/2; float32 of the accumulation
    assert found["micro.cosine_mean"] == pytest.approx(-1 / 3, abs=1e-6)
    assert found["micro.cosine_min"] == pytest.approx(-1, abs=1e-6)
    assert found["micro.conflicts"] == pytest.approx(2 / 3)


def test_the_noise_scale_is_that_of_its_definition() -> None:
    """tr Σ / |G|² from the spread of equal parts, by NumPy; a factor in the loss changes nothing."""
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(8, 5)) + 2.0
    mean = parts.mean(0)
    trace = 4 * ((parts - mean) ** 2).sum() / 7  # parts of 4 samples have covariance Σ/4
    square = (mean**2).sum() - trace / 32
    for scale in (1.0, 2.0**16, 2.0**-20):
        found = accumulated(parts.tolist(), scale)
        # float32 of eight sums
        assert found["micro.noise_scale"] == pytest.approx(trace / square, rel=1e-4)


def test_one_micro_batch_says_nothing() -> None:
    """There is nothing to compare."""
    assert accumulated([[1.0, 2.0]]) == {}
