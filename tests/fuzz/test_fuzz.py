"""Every input of every format ends in an answer or a `CurvError`; ``make fuzz`` goes on for ten minutes."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, corpus, inputs, run

EXAMPLES = {"program": 40, "torchscript": 80, "images": 80}


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    for content in corpus(name):
        run(name, content)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_of_the_corpus(name: str) -> None:
    @settings(
        max_examples=EXAMPLES.get(name, 150),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        run(name, data.draw(inputs(name)))

    one()
