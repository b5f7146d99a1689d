"""Every command answers on the sample models what it answered when the answers were recorded, to rounding.

Other processors and numbers of threads add up in another order. One-pass figures then differ by some eps; what an
iteration converges to differs by that times its condition. float32: 1e-4 relative, or 1e-6 of the largest figure beside
it; float64: 1e-8 and 1e-10. Everything that is no number is the same.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.cases import ANSWERS, CASES, answer_of, workplace
from tests.oracles.differences import differences

pytestmark = pytest.mark.full
_TOLERANCE = {"float32": (1e-4, 1e-6), "float64": (1e-8, 1e-10)}


@pytest.fixture(scope="module", autouse=True)
def _workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with workplace(tmp_path_factory.mktemp("contracts")):
        yield


@pytest.mark.parametrize("name", CASES)
def test_the_answer_is_the_recorded_one(name: str) -> None:
    recorded = json.loads(gzip.decompress((ANSWERS / f"{name}.json.gz").read_bytes()))
    found = answer_of(CASES[name])
    dtype = (recorded.get("target") or {}).get("dtype") or "float32"
    found_differences = list(differences(recorded, found, "", 0.0, *_TOLERANCE[dtype]))
    assert not found_differences, "\n".join(found_differences[:20])


def test_every_recorded_answer_has_its_case() -> None:
    assert {path.name.removesuffix(".json.gz") for path in Path(ANSWERS).iterdir()} == set(CASES)


def test_a_difference_is_seen() -> None:
    assert list(differences({"a": [1.0]}, {"a": [1.001]}, "", 0.0, 1e-4, 1e-6))
    assert list(differences({"a": "x"}, {"a": "y"}, "", 0.0, 1e-4, 1e-6))
    assert list(differences({"a": 1}, {}, "", 0.0, 1e-4, 1e-6))
    assert not list(differences({"a": 1e-9, "b": 1.0}, {"a": 2e-9, "b": 1.0}, "", 0.0, 1e-4, 1e-6))
