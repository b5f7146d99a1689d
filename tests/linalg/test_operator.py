"""Random vectors have the same bits whether they are drawn at once or in pieces."""

from types import SimpleNamespace

import pytest
import torch

from curvcli.linalg import operator
from curvcli.linalg.operator import normals, random_unit_vector


@pytest.mark.parametrize("n", [1, 15, 16, 17, 63, 64, 65, 79, 80, 200, 1027])
def test_pieces_are_the_numbers_of_one_draw(n: int) -> None:
    """And the generator is left where that draw leaves it."""
    one, many = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    whole = torch.randn(n, generator=one, dtype=torch.float64)
    pieces = list(normals(n, many, piece=32))
    assert max(map(len, pieces)) < 64 or n < 64
    assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(torch.randn(20, generator=one), torch.randn(20, generator=many))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_long_unit_vector_is_that_of_one_draw(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Only its length is summed in another order: two units in the last place of float64."""
    op = SimpleNamespace(n=5_003, dtype=dtype, device=torch.device("cpu"))
    whole = random_unit_vector(op, torch.Generator().manual_seed(5))
    monkeypatch.setattr(operator, "PIECE", 64)
    found = random_unit_vector(op, torch.Generator().manual_seed(5))
    torch.testing.assert_close(found, whole, rtol=2 * torch.finfo(dtype).eps, atol=0)
