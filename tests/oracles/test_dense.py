"""The dense reference of the tests agrees with a closed form."""

import torch

from tests.oracles.dense import dense_hessian_of
from tests.oracles.surfaces import Point


def test_the_dense_hessian_of_a_quadratic_is_its_matrix() -> None:
    """∇² of ½ wᵀAw is A."""
    a = torch.tensor([[2.0, 1.0], [1.0, -3.0]]).double()
    point = Point([0.3, 0.7])
    h = dense_hessian_of(point, lambda m, p: 0.5 * p["w"] @ a @ p["w"])
    assert torch.allclose(h, a)
