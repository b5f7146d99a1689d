"""`init` writes a target file that works, and says what it does not know."""

from pathlib import Path

import pytest

import curvcli
from curvcli.errors import ModelError, UsageError
from tests.conftest import SAMPLES


def test_init_writes_a_file_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = curvcli.analyse("init", curvcli.load(str(SAMPLES / "digits_mlp.safetensors"))).result
    assert result.recognised == "MLP 64 → 128 → 64 → 10"
    assert result.settings == {"model": "auto"}
    assert result.unknown == ["data", "loss"]
    text = (tmp_path / "digits_mlp.toml").read_text()
    assert "assumed" in text
    filled = text.replace('# data = "val.npz"', f'data = "{SAMPLES / "digits.npz"}"')
    filled = filled.replace('# loss = "cross_entropy"', 'loss = "cross_entropy"')
    (tmp_path / "digits_mlp.toml").write_text(filled)
    # The sample's activation is GELU, which no shape tells.
    run = curvcli.load("digits_mlp.toml", model_args={"activation": "gelu"})
    true = curvcli.load(str(SAMPLES / "digits_mlp.toml")).objective
    assert run.objective.loss == pytest.approx(true.loss, rel=1e-6)
    with pytest.raises(UsageError, match="exists"):
        curvcli.analyse("init", curvcli.load(str(SAMPLES / "digits_mlp.safetensors")))
    with pytest.raises(ModelError, match="Did you mean 'gelu'"):
        _ = curvcli.load("digits_mlp.toml", model_args={"activation": "gelo"}).objective


def test_init_says_what_it_does_not_know(tmp_path: Path) -> None:
    to = tmp_path / "t.toml"
    run = curvcli.load(str(SAMPLES / "digits_lstm.safetensors"))
    result = curvcli.analyse("init", run, to=str(to)).result
    assert result.recognised is None
    assert result.unknown == ["model", "data", "loss"]
    assert '# model = "models.py:Net"' in to.read_text()
