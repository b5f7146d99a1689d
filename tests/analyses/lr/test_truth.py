"""Training by hand with multiples of what `lr` answers, on six networks."""

import pytest

from tests.oracles.learning_rates import cases, row

pytestmark = pytest.mark.full


@pytest.mark.parametrize("name", cases())
def test_half_and_nine_tenths_of_the_answer_train(name: str) -> None:
    """1000 steps by torch's own optimizer end below the start with living units."""
    found, outcomes = row(cases()[name]())
    assert outcomes[0].trained, found
    assert outcomes[1].trained, found


def test_a_tenth_above_the_answer_a_quadratic_diverges() -> None:
    """The bound is exact there, and the answer is within 5 % of it."""
    _, outcomes = row(cases()["linear"]())
    assert [o.trained for o in outcomes] == [True, True, False, False]
