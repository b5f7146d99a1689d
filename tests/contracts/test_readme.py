"""The README says what the program says."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.oracles.program import ROOT

README = (ROOT / "README.md").read_text()


def test_help_texts_in_the_readme_are_those_of_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", "README.md"],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert done.returncode == 0, f"run `make readme`\n{done.stdout}{done.stderr}"


def test_every_flag_in_the_readme_exists() -> None:
    text, shown = README.split("## Commands")
    own = re.sub(r"^uvx? .*$", "", text, flags=re.MULTILINE)
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", own)):
        assert flag in shown, flag


def test_the_target_file_in_the_readme_is_valid() -> None:
    from curvcli.loading.spec import TargetSpec, make_spec

    (block,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    table = tomllib.loads("\n".join(line.strip() for line in block.splitlines()))
    table.pop("hessian")
    assert isinstance(make_spec(table), TargetSpec)


def test_python_in_the_docstring_of_the_package_runs(samples: Path) -> None:
    import curvcli

    run = curvcli.load(str(samples / "digits_mlp.toml"), dtype="float64")
    result = curvcli.analyse("hessian", run, top=1, bottom=0).result
    assert 9.33 < result.top[0].value < 9.34
    assert {"Batch", "Objective"} <= {curvcli.Batch.__name__, curvcli.Objective.__name__}
