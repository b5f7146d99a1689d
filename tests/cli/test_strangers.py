"""A folder that was downloaded, with everything in it, runs no code and writes no file unless the user says so."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.loading.checkpoints.test_exported import Bomb
from tests.oracles.program import answer, invoke, run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a pickle, weights, data, and modules that leave a canary when they are imported."""
    canary = f"import os\nos.makedirs({str(tmp_path / 'canary')!r}, exist_ok=True)\n"
    torch.save({"a": Bomb(tmp_path / "canary")}, tmp_path / "bomb.pt")
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "m.safetensors")
    (tmp_path / "evil.py").write_text(canary)
    for name in ("rich", "typer", "msgspec", "numpy", "torch", "jinja2"):
        (tmp_path / f"{name}.py").write_text(canary)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("key", ["unsafe-pickle", "trust-remote-code", "offload"])
@pytest.mark.parametrize("place", ["pyproject", "target"])
def test_no_file_switches_protection_off(key: str, place: str, folder: Path) -> None:
    """Flags that let code run, or fill a disk, are taken from the command line only."""
    if place == "pyproject":
        (folder / "pyproject.toml").write_text(f"[tool.curvcli]\n{key} = true\n")
        done = invoke("info", "bomb.pt", "--project")
    else:
        (folder / "t.toml").write_text(f'checkpoint = "bomb.pt"\n{key} = true\n')
        done = invoke("info", "t.toml")
    assert done.exit_code == 2
    assert f"--{key}" in done.stderr
    assert not (folder / "canary").exists()


@pytest.mark.parametrize(
    "setting",
    [
        'model = "evil.py:Net"', 'loss = "evil:loss"', 'data = "evil.py:batches"', 'objective = "evil.py:loss"',
        '[tool.curvcli.hessian]\nstate = "evil.state"', '[tool.curvcli.check]\nupdate-baseline = true',
    ],
)  # fmt: skip
def test_the_project_of_a_folder_names_no_code_unless_it_is_trusted(
    setting: str, folder: Path
) -> None:
    """What a pyproject names to be run or written counts with --project only."""
    (folder / "pyproject.toml").write_text(f"[tool.curvcli]\n{setting}\n")
    refused = invoke("hessian", "m.safetensors")
    assert refused.exit_code == 2
    assert "--project" in refused.stderr
    assert not (folder / "canary").exists()
    assert invoke("info", "m.safetensors", "--no-project").exit_code == 0


def test_a_trusted_project_is_used(folder: Path) -> None:
    """With --project, or beside a target file that is named, its code counts."""
    (folder / "pyproject.toml").write_text('[tool.curvcli]\nmodel = "evil.py:Net"\n')
    (folder / "t.toml").write_text('checkpoint = "m.safetensors"\n')
    for arguments in (["m.safetensors", "--project"], ["t.toml"]):
        rest = ("--data", "x.npz", "--loss", "mse")
        assert "no attribute 'Net'" in invoke("hessian", *arguments, *rest).stderr
    assert (folder / "canary").exists()


def test_what_the_command_line_overrides_needs_no_trust(folder: Path) -> None:
    """Settings that name no code count as before, and a flag takes the place of one that does."""
    (folder / "pyproject.toml").write_text(
        '[tool.curvcli]\nmodel = "evil.py:Net"\nobjective = "evil.py:loss"\nseed = 7\n'
    )
    code, envelope = answer("info", "m.safetensors", "--no-project")
    assert (code, envelope["target"]["seed"]) == (0, 0)
    done = invoke(
        "hessian", "m.safetensors", "--model", "auto", "--loss", "mse", "--data", "none.npz"
    )
    assert "none.npz" in done.stderr


def test_modules_beside_a_model_are_not_taken_for_libraries(folder: Path) -> None:
    """The folder of a user's file, and the working directory, are searched last."""
    (folder / "train.py").write_text("import rich, jinja2\nfrom own import build\n")
    (folder / "own.py").write_text("def build():\n    raise ValueError('own was found')\n")
    settings = ("--model", "train.py:build", "--data", "x.npz", "--loss", "mse")
    done = run("hessian", "m.safetensors", *settings, cwd=folder)
    assert "own was found" in done.stderr
    assert not (folder / "canary").exists()
