"""README and docs say what the program says."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.oracles.program import ROOT

README = (ROOT / "README.md").read_text("utf-8")
DOCS = {
    p.relative_to(ROOT).as_posix(): p.read_text("utf-8")
    for p in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
}
FIGURES = [
    name for name in sorted(DOCS) if name.startswith("docs/figures/") and "index" not in name
]
GENERATED = [
    "docs/reference/commands.md",
    "docs/speed.md",
    "docs/architecture.md",
    "docs/larger-models.md",
    *FIGURES,
]


def test_help_texts_in_the_docs_are_those_of_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", *GENERATED],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert done.returncode == 0, f"run `make readme`\n{done.stdout}{done.stderr}"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_every_flag_in_the_guides_exists() -> None:
    shown = DOCS["docs/reference/commands.md"]
    # What is behind it speaks of flags that were tried, and of other programs.
    behind = ("decisions.md", "changelog.md", "breakages.md")
    for guide in (name for name in DOCS if not name.endswith(behind)):
        own = re.sub(r"^(uvx?|torchrun) .*$", "", DOCS[guide], flags=re.MULTILINE)
        for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", own)):
            assert flag in shown, (guide, flag)


def test_every_link_leads_to_a_file_that_is_there() -> None:
    """And from the site to nothing outside of it: those links are whole addresses."""
    checked = 0
    for name, text in DOCS.items():
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
            if not link.startswith(("http", "mailto")):
                place = ((ROOT / name).parent / link).resolve()
                assert place.exists(), (name, link)
                assert name == "README.md" or place.is_relative_to(ROOT / "docs"), (name, link)
                checked += 1
    assert checked > 20


def test_every_page_is_in_the_navigation() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    named = set(re.findall(r"[\w/-]+\.md", str(site["nav"])))
    assert {f"docs/{page}" for page in named} == set(DOCS) - {"README.md"}


def test_the_target_file_in_the_guide_is_valid() -> None:
    from curvcli.loading.spec import TargetSpec, make_spec

    (block,) = re.findall(r"```toml\n(.*?)```", DOCS["docs/your-model.md"], re.DOTALL)
    table = tomllib.loads("\n".join(line.strip() for line in block.splitlines()))
    table.pop("hessian")
    assert isinstance(make_spec(table), TargetSpec)


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: `make docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_python_in_the_docstring_of_the_package_runs(samples: Path) -> None:
    import curvcli

    run = curvcli.load(str(samples / "digits_mlp.toml"), dtype="float64")
    result = curvcli.analyse("hessian", run, top=1, bottom=0).result
    assert 9.33 < result.top[0].value < 9.34
    assert {"Batch", "Objective"} <= {curvcli.Batch.__name__, curvcli.Objective.__name__}
