"""What the project is packaged and released by: action, image, conda recipe, tags."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from curvcli import __version__
from tests.oracles.program import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
RELEASE: dict[Any, Any] = yaml.safe_load(
    (ROOT / ".github/workflows/release.yml").read_text("utf-8")
)


def script(name: str) -> str:
    """What a step of the action runs."""
    (step,) = (s for s in ACTION["runs"]["steps"] if s.get("name") == name)
    return str(step["run"])


@pytest.mark.parametrize(("rule", "code"), [("info.nonfinite == 0", 0), ("hessian.loss > 9", 1)])
def test_the_action_checks_writes_both_files_and_one_summary(
    samples: Path, tmp_path: Path, rule: str, code: int
) -> None:
    """Its own script, run as a runner runs it."""
    shim = tmp_path / "bin" / "curvcli"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m curvcli "$@"\n')
    shim.chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}", "TARGETS": str(samples / "digits_mlp.toml"),
        "RULES": f"{rule}\n", "BUDGET": "2m", "GITHUB_OUTPUT": str(tmp_path / "out"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }  # fmt: skip
    bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script("Check")]
    subprocess.run(bash, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "out").read_text() == f"exit-code={code}\n"
    assert json.loads((tmp_path / "curvcli.sarif").read_text())["version"] == "2.1.0"
    page = (tmp_path / "curvcli.html").read_text("utf-8")
    assert "<html" in page
    assert "<script" not in page  # or it would need an extra that the action does not install
    assert (tmp_path / "summary.md").read_text("utf-8").count("# curvcli check") == 1


def test_no_script_of_the_action_or_a_workflow_pastes_what_it_is_given() -> None:
    """Inputs come by the environment: a title of a pull request is no command."""
    steps = [*ACTION["runs"]["steps"]]
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(file.read_text("utf-8"))["jobs"].values()
        steps += [s for job in jobs for s in job["steps"]]
    pasted = [s["run"] for s in steps if re.search(r"\$\{\{\s*(inputs|github\.event)", s.get("run", ""))]  # fmt: skip
    assert len(steps) > 20
    assert not pasted


def test_publishing_is_trusted() -> None:
    """One job may ask for an identity, for tags only; no secret is named."""
    allowed = {name for name, job in RELEASE["jobs"].items() if "id-token" in job.get("permissions", {})}  # fmt: skip
    assert allowed == {"publish"}
    assert RELEASE[True] == {"push": {"tags": ["v*"]}}  # YAML reads "on" as true
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text("utf-8")


def release() -> ModuleType:
    """The script that the workflow runs first."""
    spec = importlib.util.spec_from_file_location("release", ROOT / "docs" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_release_has_the_notes_of_its_version() -> None:
    """Tag, version and changelog agree, or there is none."""
    log = "# Changelog\n\n## Unreleased\n\n## 1.1.0 (2026-01-01)\n\n- New.\n\n## 1.0.0\n\n- Old.\n"
    assert release().notes("v1.1.0", "1.1.0", log) == "- New."
    with pytest.raises(SystemExit, match=r"the tag is v1\.1\.0"):
        release().notes("v1.1.0", "1.0.0", log)
    with pytest.raises(SystemExit, match=r"no section"):
        release().notes("v1.2.0", "1.2.0", log)


def test_the_conda_recipe_needs_what_the_package_needs() -> None:
    """Under conda's names."""
    recipe = yaml.safe_load((ROOT / "packaging/conda/recipe.yaml").read_text("utf-8"))
    needed = {re.sub(r"^torch(?=>)", "pytorch", w) for w in PROJECT["project"]["dependencies"]}
    needed.add(f"python{PROJECT['project']['requires-python']}")
    assert {w.replace(" ", "") for w in recipe["requirements"]["run"]} == needed
    assert recipe["context"]["version"] == __version__


def test_the_image_copies_what_is_there_and_is_well_formed() -> None:
    """Every path exists, passes .dockerignore, and hadolint has nothing against it."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    copied = [w for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for w in line.split()[:-1]]  # fmt: skip
    kept = set(re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE))
    assert len(copied) == 5
    assert all((ROOT / path).exists() for path in copied)
    assert set(copied) == kept
    extras = re.findall(r"/source\[(.*?)\]", text)[0].split(",")
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed")
    subprocess.run(["hadolint", str(ROOT / "Dockerfile")], check=True)
