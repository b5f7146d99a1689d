"""Several targets are told apart by their names, and take the settings of the file before them."""

from pathlib import Path
from typing import Any

import pytest

from curvcli.analyses.shared.targets import resolve_targets, step_of
from curvcli.errors import UsageError


@pytest.mark.parametrize(
    ("name", "step"),
    [("step_100.safetensors", 100), ("epoch=3-step=400.ckpt", 400), ("checkpoint-500", 500),
     ("model_7_of_run_3.pt", None), ("run2/last.pt", None), ("iter0012.bin", 12)],
)  # fmt: skip
def test_steps_in_names(name: str, step: int | None) -> None:
    assert step_of(name) == step


def test_targets_take_the_settings_of_the_file_before_them(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text('checkpoint = "a.pt"\nmodel = "m:A"\n')
    (tmp_path / "b.toml").write_text('checkpoint = "b.pt"\nmodel = "m:B"\n')
    named = resolve_targets(["a.toml", "c.pt", "b.toml", "d.pt"], {}, (), "many")
    shown = [(Path(str(n.spec.checkpoint)).name, n.spec.model) for n in named]
    assert shown == [("a.pt", "m:A"), ("c.pt", "m:A"), ("b.pt", "m:B"), ("d.pt", "m:B")]
    pair = resolve_targets(["a.toml", "c.pt", "d.pt"], {}, (), "pair")
    assert [n.spec.checkpoint for n in pair] == ["c.pt", "d.pt"]
    with pytest.raises(UsageError, match="two targets are compared, not 3"):
        resolve_targets(["a.pt", "b.pt", "c.pt"], {}, (), "pair")


def test_shards_in_a_directory_are_no_series(tmp_path: Path) -> None:
    for i in (1, 2):
        (tmp_path / f"model-0000{i}-of-00002.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match="no checkpoint with a step number"):
        resolve_targets([str(tmp_path)], {}, (), "series")
