"""Every command answers on the sample models what it answered when the answers were recorded, to rounding.

Other processors and numbers of threads add up in another order. One-pass figures then differ by some eps; what an
iteration converges to differs by that times its condition. float32: 1e-4 relative, or 1e-6 of the largest figure beside
it; float64: 1e-8 and 1e-10. Everything that is no number is the same.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.cases import ANSWERS, CASES, answer_of, workplace

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
    differences = list(_differences(recorded, found, "", 0.0, *_TOLERANCE[dtype]))
    assert not differences, "\n".join(differences[:20])


def test_every_recorded_answer_has_its_case() -> None:
    assert {path.name.removesuffix(".json.gz") for path in Path(ANSWERS).iterdir()} == set(CASES)


def test_a_difference_is_seen() -> None:
    assert list(_differences({"a": [1.0]}, {"a": [1.001]}, "", 0.0, 1e-4, 1e-6))
    assert list(_differences({"a": "x"}, {"a": "y"}, "", 0.0, 1e-4, 1e-6))
    assert list(_differences({"a": 1}, {}, "", 0.0, 1e-4, 1e-6))
    assert not list(_differences({"a": 1e-9, "b": 1.0}, {"a": 2e-9, "b": 1.0}, "", 0.0, 1e-4, 1e-6))


def _differences(
    old: Any, new: Any, path: str, scale: float, relative: float, absolute: float
) -> Iterator[str]:
    """What differs; ``scale`` is the largest number beside this one."""
    if isinstance(old, dict) and isinstance(new, dict):
        beside = max([abs(v) for v in old.values() if _is_number(v)], default=0.0)
        for key in sorted(old.keys() | new.keys()):
            if key not in old or key not in new:
                yield f"{path}.{key}: only in the {'new' if key in new else 'recorded'} answer"
            else:
                yield from _differences(
                    old[key], new[key], f"{path}.{key}", beside, relative, absolute
                )
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        beside = max([abs(v) for v in old if _is_number(v)], default=scale)
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{path}[{index}]", beside, relative, absolute)
    elif _is_number(old) and _is_number(new):
        if abs(old - new) > relative * max(abs(old), abs(new)) + absolute * scale:
            yield f"{path}: {old!r} became {new!r}"
    elif isinstance(old, str) and isinstance(new, str):
        # Messages hold figures of their own, which are compared where they stand as numbers.
        if _words(old) != _words(new):
            yield f"{path}: {old!r} became {new!r}"
    elif old != new:
        yield f"{path}: {str(old)[:200]} became {str(new)[:200]}"


def _words(text: str) -> str:
    return "".join(c for c in text if not c.isdigit())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
