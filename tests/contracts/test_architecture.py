"""The documents that describe the architecture describe this one."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from curvcli.analyses.registry import NAMES

ROOT = Path(__file__).parents[2]
FILES = re.compile(r"`(curvcli/analyses/loss/\w+\.py)`\n\n```python\n(.*?)```", re.DOTALL)


def test_the_drawing_shows_every_folder_with_its_purpose() -> None:
    spec = importlib.util.spec_from_file_location("tree", ROOT / "docs" / "tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folders = module.tree()
    with_code = {
        f"{p.parent.relative_to(ROOT).as_posix()}/" for p in (ROOT / "curvcli").rglob("*.py")
    }
    assert {folder for folder, _ in folders} == with_code
    assert all(len(purpose) > 10 for _, purpose in folders)
    assert module.drawing() in (ROOT / "docs" / "architecture.md").read_text("utf-8")


def test_every_question_has_the_same_files() -> None:
    for name in NAMES:
        folder = ROOT / "curvcli" / "analyses" / name
        assert {"command.py", "run.py", "result.py", "view.py"} <= {
            p.name for p in folder.iterdir()
        }


def test_files_are_short_and_folders_small() -> None:
    """About 350 lines and sixteen files: more is a sign of a second subject."""
    files = list((ROOT / "curvcli").rglob("*.py"))
    assert not [f.name for f in files if len(f.read_text("utf-8").splitlines()) > 355]
    folders = {f.parent for f in files}
    assert not [str(d) for d in folders if len(list(d.glob("*.py"))) > 18]


def test_a_toy_question_takes_one_folder_and_one_line(tmp_path: Path) -> None:
    """What CONTRIBUTING.md shows, carried out on a copy: help, JSON, schema, a rule of `check`."""
    package = shutil.copytree(
        ROOT / "curvcli", tmp_path / "curvcli", ignore=shutil.ignore_patterns("__pycache__")
    )
    shown = FILES.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert len(shown) == 5
    (package / "analyses" / "loss").mkdir()
    for path, content in shown:
        (tmp_path / path).write_text(content, "utf-8")
    registry = package / "analyses" / "registry.py"
    registry.write_text(registry.read_text("utf-8").replace('"Start": (', '"Start": ("loss", '))

    def curvcli(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-m", "curvcli", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
        )
        return done.stdout

    target = str(ROOT / "sample_models" / "digits_mlp.toml")
    assert "Multiply it by this." in curvcli("loss", "--help")
    once, twice = (
        json.loads(curvcli("loss", target, "--times", t, "--format", "json"))["result"]
        for t in "12"
    )
    assert twice["loss"] == 2 * once["loss"] > 0
    assert "loss" in json.loads(curvcli("schema", "loss"))["$defs"]["LossResult"]["properties"]
    checked = curvcli("check", target, "--no-cache", "--rule", "loss.loss < 1", "--format", "json")
    assert json.loads(checked)["result"]["healthy"]
