"""What `check` keeps between runs, baselines and answers, is neither lost nor taken from strangers."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from curvcli.analyses.check import cache
from curvcli.analyses.check.baseline import BaselineTarget, read_baseline, write_baseline
from curvcli.analyses.registry import get
from curvcli.report.cost import CostInfo
from curvcli.report.data import Envelope
from tests.oracles.program import ROOT, answer

INFO = get("info")


def test_baselines_written_at_once_keep_every_target(tmp_path: Path) -> None:
    """Each writer locks, reads again, and adds its own."""
    path = tmp_path / "baseline.json"

    def write(number: int) -> None:
        write_baseline(path, {f"t{number}": BaselineTarget(None, None, [])})

    children = []
    for number in range(16):
        child = os.fork()
        if child == 0:
            write(number)
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(16, 24)))
    assert len(read_baseline(path, may_be_missing=False).targets) == 24
    assert [p.name for p in tmp_path.iterdir()] == ["baseline.json"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "curvcli"


@pytest.fixture(scope="module")
def result() -> Any:
    import msgspec

    _, envelope = answer("info", str(ROOT / "sample_models" / "digits_mlp.safetensors"))
    return msgspec.convert(envelope["result"], INFO.result)


def kept(result: Any) -> Envelope[Any]:
    cost = CostInfo(0, 0, 0.0, None)
    return Envelope(
        command="info", version="0", target=None, result=result, findings=[], notes=[], cost=cost
    )


def test_an_answer_is_bound_to_its_key(place: Path, result: Any) -> None:
    """Another file's answer, or one that was changed, is none; both are good JSON."""
    cache.store("one", kept(result))
    assert cache.lookup("one", INFO) is not None
    (place / "two.json").write_bytes((place / "one.json").read_bytes())
    assert cache.lookup("two", INFO) is None
    changed = (place / "one.json").read_bytes().replace(b'"nonfinite":0', b'"nonfinite":9')
    (place / "one.json").write_bytes(changed)
    assert cache.lookup("one", INFO) is None


def test_a_folder_that_others_can_write_is_closed(place: Path, result: Any) -> None:
    """It is made for its owner only; one that was open is closed; links are not followed."""
    cache.store("one", kept(result))
    assert place.stat().st_mode & 0o077 == 0
    place.chmod(0o777)
    assert cache.lookup("one", INFO) is not None
    assert place.stat().st_mode & 0o022 == 0
    (place / "one.json").rename(place / "else")
    (place / "one.json").symlink_to(place / "else")
    assert cache.lookup("one", INFO) is None


def test_a_folder_of_another_user_is_not_used(
    place: Path, result: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither read nor written."""
    cache.store("one", kept(result))
    monkeypatch.setattr(os, "geteuid", lambda: place.stat().st_uid + 1)
    assert cache.lookup("one", INFO) is None
    cache.store("two", kept(result))
    assert not (place / "two.json").exists()


def test_the_oldest_answers_are_forgotten(
    place: Path, result: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a size, by when they were last asked for."""
    for number in range(4):
        cache.store(f"k{number}", kept(result))
        os.utime(place / f"k{number}.json", (number, number))
    assert cache.lookup("k0", INFO) is not None  # asked for just now
    monkeypatch.setattr(cache, "BYTES", int(3.5 * (place / "k0.json").stat().st_size))
    cache.store("k4", kept(result))
    assert sorted(p.name for p in place.iterdir()) == ["k0.json", "k3.json", "k4.json"]
