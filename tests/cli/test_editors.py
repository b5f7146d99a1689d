"""What editors and shells are told: the schema of target files, and man pages."""

import importlib.util
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from tests.oracles.program import ROOT, invoke, run

SCHEMA: dict[str, Any] = json.loads((ROOT / "docs" / "target.schema.json").read_text("utf-8"))


def errors(text: str) -> list[str]:
    """What the schema has against a target file."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    return [error.message for error in validator.iter_errors(tomllib.loads(text))]


def test_the_schema_in_the_docs_is_that_of_the_program() -> None:
    """`make readme` writes it."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(invoke("schema", "target").stdout) == SCHEMA


def test_every_sample_is_a_target_file(samples: Path) -> None:
    """All of them."""
    files = sorted(samples.glob("*.toml"))
    assert len(files) > 8
    assert {f.name: errors(f.read_text("utf-8")) for f in files} == {f.name: [] for f in files}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('check-point = "a.pt"', True), ('[hessian]\ntip = 3', True), ('[hessian]\ntop = "3"', True),
        ('dtype = "float12"', True), ("[hessian]\ntop = 3\nmax-matvecs = 9", False),
        ('[check]\nrules = ["info.nonfinite == 0", {rule = "hessian.loss < 1", severity = "warning"}]', False),
        ('params = "fc*"\ninput-key = ["x", "y"]', False),
    ],
)  # fmt: skip
def test_wrong_keys_and_kinds_are_found(text: str, wrong: bool) -> None:
    """As the program finds them."""
    assert bool(errors(text)) is wrong


def test_init_names_the_schema(samples: Path, tmp_path: Path) -> None:
    """In the first line, where editors look for it; the file fits it."""
    made = tmp_path / "made.toml"
    done = run("init", str(samples / "digits_mlp.safetensors"), "--to", str(made))
    assert done.returncode == 0
    text = made.read_text("utf-8")
    assert text.splitlines()[0] == f"#:schema {SCHEMA['$id']}"
    assert not errors(text)


def manual() -> ModuleType:
    """The script that writes man pages."""
    spec = importlib.util.spec_from_file_location("manual", ROOT / "docs" / "manual.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_has_a_man_page(tmp_path: Path) -> None:
    """With all its flags; groff has nothing against them."""
    subprocess.run([sys.executable, str(ROOT / "docs" / "manual.py"), str(tmp_path)], check=True)
    pages = manual().pages()
    assert {p.name for p in tmp_path.iterdir()} == set(pages)
    assert "\\-\\-max\\-matvecs" in pages["curvcli-hessian.1"]
    assert "curvcli\\-hessian" in pages["curvcli.1"]
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    for page in tmp_path.iterdir():
        done = subprocess.run(
            ["groff", "-k", "-man", "-ww", "-z", "-Tutf8", str(page)], capture_output=True, text=True, check=True
        )  # fmt: skip
        assert not done.stderr, page.name
