"""What several files of the project say of versions is the same."""

import re
import tomllib

import yaml

from tests.oracles.program import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def test_the_linters_are_of_one_version_everywhere() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    lint = dict(wish.split("==") for wish in PROJECT["optional-dependencies"]["lint"])
    assert hooks["repos"][0]["rev"] == f"v{lint['ruff']}"
    assert {name: PINS[name] for name in lint} == lint


def test_the_workflow_tests_the_oldest_torch_and_every_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    matrix = workflow["jobs"]["matrix"]["strategy"]["matrix"]
    (torch,) = (wish for wish in PROJECT["dependencies"] if wish.startswith("torch"))
    assert matrix["torch"] == [f"{torch.replace('>=', '==')}.*", "torch"]
    tested = {*matrix["python"], *(cell["python"] for cell in matrix["include"])}
    promised = {
        line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line
    }
    assert tested == promised
