"""`--open` writes a page and shows it."""

import webbrowser
from pathlib import Path

import pytest

from tests.oracles.program import ROOT, invoke

LINEAR = str(ROOT / "sample_models" / "linear_regression.toml")


class Shown(list[str]):
    """Addresses that a browser was asked for; ``there`` says whether there is one."""

    there = True

    def open(self, address: str) -> bool:
        self.append(address)
        return self.there


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    made = Shown()
    monkeypatch.setattr(webbrowser, "open", made.open)
    return made


@pytest.mark.parametrize("there", [True, False])
def test_the_page_is_shown(there: bool, tmp_path: Path, shown: Shown) -> None:
    shown.there = there
    named = tmp_path / "a b.html"
    done = invoke("info", LINEAR, "--open", "--static", "-o", str(named))
    assert done.exit_code == 0, done.stderr
    assert shown == [named.as_uri()]
    assert ("no browser" in done.stderr) is not there
    assert named.read_text("utf-8").startswith("<!doctype html>")


def test_without_a_name_the_page_has_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: Shown
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    done = invoke("info", LINEAR, "--open", "--static")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    (file,) = tmp_path.glob("curvcli-*/info.html")
    assert shown == [file.as_uri()]
