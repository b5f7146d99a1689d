"""Charts become pictures in the format of the file's name; an answer without one is refused."""

from pathlib import Path

import pytest

from tests.oracles.program import ROOT, invoke, run

SADDLE = str(ROOT / "sample_models" / "saddle.toml")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_picture_of_the_charts(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    file = tmp_path / f"density.{kind}"
    code = run("density", SADDLE, "-o", str(file)).returncode
    assert code == 0
    content = file.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])


def test_an_answer_of_names_is_drawn_as_its_table(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    result = invoke("info", SADDLE, "-o", str(tmp_path / "info.svg"))
    assert result.exit_code == 0, result.stderr
    # Matplotlib writes letters as shapes, and says beside them which: the name of a tensor is there.
    assert "<!-- hidden.bias -->" in (tmp_path / "info.svg").read_text("utf-8")


def test_an_answer_of_single_figures_is_drawn_as_these(tmp_path: Path) -> None:
    """A convex loss has no way down from a saddle to draw: what is left are the figures."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    target = str(ROOT / "sample_models" / "linear_regression.toml")
    result = invoke("saddle", target, "-o", str(tmp_path / "saddle.svg"))
    assert result.exit_code == 0, result.stderr
    assert "<!-- gradient norm -->" in (tmp_path / "saddle.svg").read_text("utf-8")
