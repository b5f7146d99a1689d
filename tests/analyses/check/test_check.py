"""`curvcli check` passes, fails and reports as CI systems need it: processes, pipes, pseudo-terminals, files."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import xmlschema
import yaml
from safetensors.torch import load_file, save_file

from curvcli.analyses.check.cache import NotKept, TargetKey
from curvcli.analyses.check.rules import make_rule
from curvcli.analyses.registry import get
from curvcli.loading.spec import make_spec
from curvcli.report.data import json_schema
from tests.oracles.program import ROOT, in_terminal, invoke, run

SCHEMAS = Path(__file__).parent / "schemas"
# Two products suffice for these: the sample's loss is 0.0373 and its first eigenvalue 9.3367.
MIXED = [
    "gradients.loss < 1",
    "gradients.loss > 1",
    "gradients.noise.signal_to_noise < 1.2",
    "info.nonfinite == 0",
]


@pytest.fixture
def project(tmp_path: Path, samples: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one target file in the working directory, and a cache of its own."""
    for name in ("digits_mlp.safetensors", "digits.npz", "models.py"):
        shutil.copy(samples / name, tmp_path)
    write_target(tmp_path, MIXED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return tmp_path


def write_target(folder: Path, rules: list[Any], name: str = "run.toml") -> Path:
    listed = ",\n".join(
        "  { rule = " + json.dumps(r["rule"]) + "".join(
            f", {k} = {json.dumps(v)}" for k, v in r.items() if k != "rule") + " }"
        if isinstance(r, dict) else f"  {json.dumps(r)}"
        for r in rules
    )  # fmt: skip
    path = folder / name
    path.write_text(
        'checkpoint = "digits_mlp.safetensors"\nmodel = "models.py:DigitsMLP"\ndata = "digits.npz"\n'
        f'loss = "cross_entropy"\n\n[check]\nrules = [\n{listed}\n]\n'
    )
    return path


def checked(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = invoke("check", *arguments, "--format", "json")
    return done.exit_code, json.loads(done.stdout)


def decisions(envelope: dict[str, Any]) -> list[str]:
    return [r["decision"] for t in envelope["result"]["targets"] for r in t["rules"]]


def test_json_holds_the_contract_and_violations_exit_1(project: Path) -> None:
    code, envelope = checked("run.toml")
    assert code == 1
    jsonschema.validate(envelope, json_schema(get("check").result))
    result = envelope["result"]
    assert decisions(envelope) == ["pass", "violation", "undecided", "pass"]
    assert not result["healthy"]
    assert result["count"] == {
        "passed": 2,
        "violated": 1,
        "undecided": 1,
        "errors": 0,
        "skipped": 0,
    }
    assert {run["analysis"] for run in result["targets"][0]["analyses"]} == {"info", "gradients"}
    assert [r["line"] for r in result["targets"][0]["rules"]] == [8, 9, 10, 11]
    severities = {f["rule"]: f["severity"] for f in envelope["findings"]}
    assert severities == {"check.violation": "error", "check.undecided": "warning"}


def test_undecided_has_its_own_exit_status(project: Path) -> None:
    write_target(project, ["gradients.noise.signal_to_noise < 1.2"])
    for flag, code in (("warn", 0), ("pass", 0), ("fail", 3)):
        done, envelope = checked("run.toml", "--undecided", flag)
        assert done == code, flag
        assert decisions(envelope) == ["undecided"]
    assert checked("run.toml", "--strict")[0] == 1


def test_nothing_is_called_healthy_that_was_not_decided(project: Path) -> None:
    """The first line by how many rules were decided: none, some, only ones that are noted."""

    def first(*rules: Any) -> tuple[str, str]:
        write_target(project, list(rules))
        code, envelope = checked("run.toml")
        assert code == 0
        return envelope["verdict"]["level"], envelope["verdict"]["sentence"]

    null = {"rule": "gradients.residual_growth < 10", "optional": True}
    level, said = first(null)
    assert level == "attention"
    assert said.startswith("No rule was decided: gradients.residual_growth < 10 is skipped")
    level, said = first(null, "info.nonfinite == 0", "gradients.loss > 0")
    assert (level, said) == (
        "good",
        "Healthy: all 2 rules that were decided hold; 1 skipped.",
    )
    assert first(null, "info.nonfinite == 0")[1] == (
        "Healthy: the one rule that was decided holds; 1 skipped."
    )
    noted = {"rule": "gradients.loss > 1e9", "severity": "note"}
    assert first(noted) == ("attention", "Nothing fails, but 0 of 1 rules hold; 1 noted below.")
    last = invoke("check", "run.toml", "--format", "github").stdout.splitlines()[-1]
    assert last == "curvcli check: 0 of 1 rules hold"
    write_target(project, [null, "info.nonfinite == 0"])
    last = invoke("check", "run.toml", "--format", "github").stdout.splitlines()[-1]
    assert last == "curvcli check: 1 of 1 rules hold, 1 skipped"


def test_severity_and_message_come_from_the_table(project: Path) -> None:
    rule = {"rule": "gradients.loss > 1", "severity": "warning", "message": "loss is low"}
    write_target(project, [rule])
    code, envelope = checked("run.toml")
    assert code == 0
    assert envelope["findings"][0]["severity"] == "warning"
    assert "loss is low: gradients.loss is 0.037" in envelope["findings"][0]["message"]


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        (["gradients.los < 1"], "Did you mean 'loss'"),
        (["hessian.top[10].value < 1"], "but hessian finds 10"),
        (["gradients.loss < baseline"], "name its file by --baseline"),
        ([{"rule": "info.bytes > 0", "severity": "bad"}], "severity"),
        ([{"rule": "info.bytes > 0", "mesage": "x"}], "mesage"),
        ([3], "--rules"),
    ],
)
def test_wrong_rules_exit_2_before_anything_runs(
    project: Path, rules: list[Any], match: str
) -> None:
    write_target(project, rules)
    done = invoke("check", "run.toml")
    assert done.exit_code == 2
    assert match in done.stderr
    assert not (project / "cache").exists()


def test_wrong_rules_are_told_without_importing_torch(project: Path) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom curvcli.cli.main import make_app\n"
        "r = CliRunner().invoke(make_app(), ['check', 'run.toml', '--rule', 'hesian.loss < 1'])\n"
        "assert r.exit_code == 2 and 'Did you mean' in r.stderr, r.output\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_junit_is_valid_against_its_published_schema(project: Path) -> None:
    done = run("check", "run.toml", "--format", "junit", "--undecided", "fail", cwd=project)
    assert done.returncode == 1
    xmlschema.XMLSchema(str(SCHEMAS / "junit-10.xsd")).validate(done.stdout)
    assert done.stdout.count("<failure") == 2
    assert done.stdout.count("<testcase") == 4


def test_sarif_is_valid_against_its_published_schema(project: Path) -> None:
    invoke("check", "run.toml", "--format", "sarif", "-o", "out.sarif")
    log = json.loads((project / "out.sarif").read_text())
    schema = json.loads((SCHEMAS / "sarif-schema-2.1.0.json").read_text())
    jsonschema.Draft4Validator(schema).validate(log)
    results = log["runs"][0]["results"]
    assert [r["kind"] for r in results] == ["pass", "fail", "review", "pass"]
    assert [r["level"] for r in results] == ["none", "error", "none", "none"]
    place = results[1]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "run.toml"
    assert place["region"]["startLine"] == 9


def test_github_annotations_and_the_job_summary(project: Path) -> None:
    summary = project / "summary.md"
    summary.write_text("before\n")
    done = run(
        "check", "run.toml", "--format", "github", cwd=project, GITHUB_STEP_SUMMARY=str(summary)
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("curvcli check: ✗ run.toml: gradients.loss is 0.03")
    assert lines[1].startswith("::error file=run.toml,line=9,title=gradients.loss > 1::")
    assert lines[2].startswith("::warning file=run.toml,line=10,title=")
    assert lines[-1] == "curvcli check: 2 of 4 rules hold"
    assert summary.read_text().startswith("before\n## curvcli check\n")
    assert "gradients.loss" in summary.read_text()


def test_annotations_escape_what_would_end_them(project: Path) -> None:
    rule = {"rule": "gradients.loss > 1", "message": "100 %\n::error::x"}
    write_target(project, [rule])
    done = invoke("check", "run.toml", "--format", "github")
    verdict, annotation, _ = done.stdout.splitlines()
    assert verdict.startswith("curvcli check: ✗ run.toml: 100 %\\x0a")
    assert annotation.startswith("::error file=run.toml")
    assert "100 %25\\x0a" in done.stdout


def test_gitlab_code_quality_has_the_fields_that_gitlab_asks_for(project: Path) -> None:
    issues = json.loads(invoke("check", "run.toml", "--format", "gitlab").stdout)
    assert len(issues) == 2
    for issue in issues:
        assert set(issue) == {"description", "check_name", "fingerprint", "severity", "location"}
        assert issue["severity"] in {"info", "minor", "major", "critical", "blocker"}
        assert issue["location"]["path"] == "run.toml"
    assert len({i["fingerprint"] for i in issues}) == 2


def test_a_terminal_shows_a_table_and_a_pipe_no_colour(project: Path, samples: Path) -> None:
    piped = run("check", "run.toml", cwd=project)
    assert piped.returncode == 1
    assert "\x1b" not in piped.stdout
    assert "VIOLATED" in piped.stdout
    code, shown = in_terminal("check", str(project / "run.toml"))
    assert code == 1
    assert "VIOLATED" in shown
    assert "\x1b[1m" in shown


def test_an_unchanged_checkpoint_is_not_looked_at_twice(project: Path) -> None:
    first = checked("run.toml")[1]
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom curvcli.cli.main import make_app\n"
        "r = CliRunner().invoke(make_app(), ['check', 'run.toml', '--format', 'json'])\n"
        "print(r.stdout)\nassert r.exit_code == 1, r.output\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    second = json.loads(done.stdout)
    assert all(run["cached"] for run in second["result"]["targets"][0]["analyses"])
    assert [r["figure"] for r in second["result"]["targets"][0]["rules"]] == [
        r["figure"] for r in first["result"]["targets"][0]["rules"]
    ]
    third = checked("run.toml", "--no-cache")[1]
    assert not any(run["cached"] for run in third["result"]["targets"][0]["analyses"])


@pytest.mark.parametrize("change", ["checkpoint", "data", "model", "option", "seed"])
def test_whatever_changes_the_answer_is_looked_at_again(project: Path, change: str) -> None:
    write_target(project, ["gradients.loss < 1"])
    before = checked("run.toml")[1]["result"]["targets"][0]
    flags: list[str] = []
    if change == "checkpoint":
        path = project / "digits_mlp.safetensors"
        status = path.stat()
        tensors = {k: v * 0.5 for k, v in load_file(path).items()}
        save_file(tensors, path)
        assert path.stat().st_size == status.st_size
    elif change == "data":
        import numpy as np

        with np.load(project / "digits.npz") as archive:
            arrays = dict(archive)
        arrays["x"] = arrays["x"] * 0.5
        np.savez(project / "digits.npz", **arrays)
    elif change == "model":
        text = (project / "models.py").read_text()
        (project / "models.py").write_text(text + "\nUNUSED = 1\n")
    elif change == "option":
        text = (project / "run.toml").read_text()
        (project / "run.toml").write_text(text + "\n[gradients]\nparts = 2\n")
    else:
        flags = ["--seed", "3"]
    after = checked("run.toml", *flags)[1]["result"]["targets"][0]
    assert not after["analyses"][0]["cached"]
    if change in ("checkpoint", "data"):
        assert after["rules"][0]["figure"]["value"] != before["rules"][0]["figure"]["value"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model": "model.py:Net"}, "weights are made by Python"),
        ({"model": "torch.nn:Linear", "checkpoint": "w.pt"}, "'torch.nn' is no file"),
        ({"data": "model.py:batches", "checkpoint": "w.pt"}, "data is made by Python"),
    ],
)
def test_what_cannot_be_hashed_is_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model.py", "w.pt"):
        (tmp_path / name).write_text("")
    with pytest.raises(NotKept, match=reason):
        TargetKey(make_spec(settings)).key("info", {})


def test_python_files_beside_a_model_are_part_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those below its folder, whether it imports them or not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    for name in ("model.py", "layers.py", "parts/deep.py", "w.pt"):
        (tmp_path / name).write_text("")
    spec = make_spec({"model": "model.py:Net", "checkpoint": "w.pt"})
    keys = [TargetKey(spec).key("info", {})]
    for name in ("model.py", "layers.py", "parts/deep.py"):
        (tmp_path / name).write_text("x = 1\n")
        keys.append(TargetKey(spec).key("info", {}))
    assert len(set(keys)) == 4


def test_data_from_python_is_never_cached(project: Path) -> None:
    (project / "batches.py").write_text(
        "import torch\ndef batches():\n    return [(torch.randn(4, 64), torch.arange(4))]\n"
    )
    for _ in range(2):
        code, envelope = checked(
            "run.toml", "--data", "batches.py:batches", "--rule", "gradients.loss < 1e9"
        )
        assert code == 0
        assert not envelope["result"]["targets"][0]["analyses"][0]["cached"]
        assert any("cannot be hashed" in note for note in envelope["notes"])


def test_a_baseline_is_written_and_compared_with(project: Path) -> None:
    write_target(project, ["gradients.loss <= 1.2 * baseline", "info.bytes == baseline"])
    code, envelope = checked("run.toml", "--baseline", "base.json", "--update-baseline")
    assert code == 0
    assert decisions(envelope) == ["skipped", "skipped"]
    stored = json.loads((project / "base.json").read_text())
    assert list(stored["targets"]) == ["run.toml"]
    assert checked("run.toml", "--baseline", "base.json")[0] == 0
    stored["targets"]["run.toml"]["figures"][0]["value"] /= 2
    for end in ("low", "high"):
        stored["targets"]["run.toml"]["figures"][0][end] /= 2
    (project / "base.json").write_text(json.dumps(stored))
    code, envelope = checked("run.toml", "--baseline", "base.json")
    assert code == 1
    assert decisions(envelope) == ["violation", "pass"]
    assert "is not a baseline" in invoke("check", "run.toml", "--baseline", "run.toml").stderr
    assert "--update-baseline" in invoke("check", "run.toml", "--baseline", "none.json").stderr


@pytest.mark.parametrize("moved", ["the folder", "the baseline", "both"])
def test_a_baseline_is_found_after_a_move(project: Path, moved: str) -> None:
    """What lies nowhere any more stands for the file of the same name; an update gives it the new name."""
    folder = project / "a"
    folder.mkdir()
    for file in [f for f in project.iterdir() if f.is_file()]:
        file.rename(folder / file.name)
    write_target(folder, ["info.bytes == baseline"])
    assert checked("a/run.toml", "--baseline", "base.json", "--update-baseline")[0] == 0
    target, baseline = "a/run.toml", "base.json"
    if moved in ("the folder", "both"):
        folder.rename(project / "b")
        target = "b/run.toml"
    if moved in ("the baseline", "both"):
        (project / "kept").mkdir()
        (project / "base.json").rename(project / "kept" / "base.json")
        baseline = "kept/base.json"
    code, envelope = checked(target, "--baseline", baseline)
    assert (code, decisions(envelope)) == (0, ["pass"])
    assert any("under the name a/run.toml" in note for note in envelope["notes"])
    checked(target, "--baseline", baseline, "--update-baseline")
    assert len(json.loads((project / baseline).read_text())["targets"]) == 1
    code, envelope = checked(target, "--baseline", baseline)
    assert not any("under the name" in note for note in envelope["notes"])


def test_the_entry_of_another_target_is_not_taken(project: Path) -> None:
    """A baseline of one run says nothing of a second that lies beside it."""
    for name in ("a", "b"):
        (project / name).mkdir()
        for file in [f for f in project.iterdir() if f.is_file()]:
            (project / name / file.name).write_bytes(file.read_bytes())
        write_target(project / name, ["info.bytes == baseline"])
    checked("a/run.toml", "--baseline", "base.json", "--update-baseline")
    _, envelope = checked("b/run.toml", "--baseline", "base.json")
    assert decisions(envelope) == ["error"]


@pytest.mark.parametrize(
    ("rule", "meant"),
    [
        ("gradients.accuracy > 0.9", "gradients.sanity.accuracy"),
        ("hessian.lambda_max < 5", "hessian.top[0].value"),
        ("hessian.trace < 5", "trace.trace.value"),
        ("gradients.dead < 0.5", "gradients.layers[*].dead_fraction"),
    ],
)
def test_a_figure_by_another_name_is_suggested(project: Path, rule: str, meant: str) -> None:
    """The nearest real name, in this analysis or another; what is suggested is a rule."""
    write_target(project, [rule])
    told = invoke("check", "run.toml").stderr
    assert f"Did you mean '{meant}'?" in told
    assert make_rule(f"{meant} < 5").leaves


def test_a_folder_of_checkpoints_is_told_what_looks_at_it(project: Path) -> None:
    """The sentence that helps stands in the answer of `check` as in those of other commands."""
    (project / "run").mkdir()
    for step in (1, 2):
        torch.save({"w": torch.ones(2)}, project / "run" / f"step_{step}.pt")
    code, envelope = checked("run")
    assert code == 2
    assert "curvcli track model.toml run" in envelope["findings"][0]["message"]


def test_a_bad_target_does_not_hide_the_others(project: Path) -> None:
    write_target(project, ["info.nonfinite == 0"])
    (project / "short.safetensors").write_bytes(
        (project / "digits_mlp.safetensors").read_bytes()[:20_000]
    )
    code, envelope = checked("run.toml", "short.safetensors", "none.pt")
    assert code == 2
    assert decisions(envelope) == ["pass", "error", "error"]
    messages = [f["message"] for f in envelope["findings"]]
    assert "truncated" in messages[0]
    assert "there is no file" in messages[1]


def test_nan_weights_are_a_violation_and_valid_json(project: Path) -> None:
    tensors = load_file(project / "digits_mlp.safetensors")
    tensors["fc1.weight"][0, 0] = torch.nan
    save_file(tensors, project / "digits_mlp.safetensors")
    write_target(project, ["info.nonfinite == 0", "gradients.loss < 1", "hessian.loss < 1"])
    code, envelope = checked("run.toml")
    assert code == 1
    assert decisions(envelope) == ["violation", "error", "error"]


def test_a_bare_checkpoint_is_checked_for_what_it_holds(project: Path) -> None:
    code, envelope = checked("digits_mlp.safetensors")
    assert code == 0
    assert [r["rule"] for r in envelope["result"]["targets"][0]["rules"]] == ["info.nonfinite == 0"]


def test_rules_stand_in_pyproject_too(project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.curvcli.check]\nrules = ["info.bytes < 10"]\n')
    code, envelope = checked("digits_mlp.safetensors")
    assert code == 1
    assert decisions(envelope) == ["violation"]


def test_the_default_rules_tell_the_ill_samples(project: Path, samples: Path) -> None:
    """A wrong backward fails; a saddle, beside which healthy networks stop too, is a note."""
    for name, rule, expected in (
        ("saddle", "saddle.verdict", 0),
        ("wrong_backward", "backprop.findings.errors", 1),
    ):
        code, envelope = checked(str(samples / f"{name}.toml"))
        assert code == expected
        (violated,) = [
            r["rule"]
            for r in envelope["result"]["targets"][0]["rules"]
            if r["decision"] == "violation"
        ]
        assert violated.startswith(rule)
    assert checked(str(samples / "linear_regression.toml"))[0] == 0


def test_a_budget_ends_in_undecided_rules_not_in_a_pass(project: Path) -> None:
    write_target(project, ["hessian.top[0].value < 1e9", "hessian.reach.upper < 9.4"])
    code, envelope = checked("run.toml", "--budget", "0s")
    assert code != 0
    assert set(decisions(envelope)) <= {"error", "undecided"}
    assert not list((project / "cache").glob("**/*.json"))


GUIDE = (ROOT / "docs" / "ci.md").read_text()
JOBS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)]


def test_the_rules_in_the_guide_are_valid(project: Path) -> None:
    (block,) = re.findall(r"```\n(\[check\]\n.*?)```", GUIDE, re.DOTALL)
    text = (project / "run.toml").read_text().partition("[check]")[0]
    (project / "run.toml").write_text(text + block)
    assert checked("run.toml", "--update-baseline", "--baseline", "base.json")[0] == 0


def test_the_jobs_in_the_guide_run(project: Path) -> None:
    """Every `curvcli check` that the guide's jobs run, in a process, on a project that keeps its rules."""
    write_target(project, ["info.nonfinite == 0", "gradients.loss < 1"])
    action, github = [job for job in JOBS if "jobs" in job]
    (given,) = [s["with"] for s in action["jobs"]["curvature"]["steps"] if "with" in s]
    assert set(given) <= set(yaml.safe_load((ROOT / "action.yml").read_text())["inputs"])
    steps = [s["run"] for s in github["jobs"]["curvature"]["steps"] if "run" in s]
    (gitlab,) = [job for job in JOBS if "curvature" in job]
    commands = [c for c in [*steps, *gitlab["curvature"]["script"]] if c.startswith("curvcli")]
    assert len(commands) == 2
    for command in commands:
        done = run(*command.split()[1:], cwd=project)
        assert done.returncode == 0, done.stderr
    report = gitlab["curvature"]["artifacts"]["reports"]["codequality"]
    assert json.loads((project / report).read_text()) == []


def test_the_pre_commit_hook_runs(project: Path) -> None:
    (job,) = [job for job in JOBS if "repos" in job]
    (wanted,) = job["repos"][0]["hooks"]
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert wanted["id"] == hook["id"]
    assert re.search(hook["files"], "run.toml")
    done = run(*hook["entry"].split()[1:], "run.toml", cwd=project)
    assert done.returncode == 1
    write_target(project, ["info.nonfinite == 0"])
    assert run(*hook["entry"].split()[1:], "run.toml", cwd=project).returncode == 0


def test_paths_in_tables_are_relative_to_the_target_file(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`[gradients] since` beside the file, from another working directory: the same weights are said."""
    write_target(project, ["gradients.findings.warnings == 0"])
    target = project / "run.toml"
    target.write_text(
        target.read_text() + '\n[gradients]\nsince = "digits_mlp.safetensors"\n', "utf-8"
    )
    monkeypatch.chdir(tmp_path.parent)
    code, envelope = checked(str(target))
    assert code == 1
    assert "the same weights" in envelope["findings"][0]["message"]


def test_the_hook_leaves_files_of_other_programs_out(project: Path) -> None:
    """Every .toml file is passed; those that name no checkpoint and no model are not targets."""
    (project / "pyproject.toml").write_text('[project]\nname = "x"\n')
    (project / "site.toml").write_text('title = "x"\n')
    write_target(project, ["info.nonfinite == 0"])
    code, envelope = checked("pyproject.toml", "site.toml", "run.toml", "--skip-others")
    assert code == 0
    assert [t["name"] for t in envelope["result"]["targets"]] == ["run.toml"]
    nothing = invoke("check", "pyproject.toml", "--skip-others")
    assert nothing.exit_code == 0
    assert "nothing was checked" in nothing.stdout
    assert invoke("check", "site.toml").exit_code == 2


@pytest.mark.parametrize("bad", ['modle = "x"\n', "[check]\nrules = ['gradients.los < 1']\n", None])
def test_one_bad_target_does_not_keep_the_others_from_being_checked(
    project: Path, bad: str | None
) -> None:
    """A wrong setting, a wrong rule, a file that is not there: an error for that target, rules of the other."""
    if bad is not None:
        (project / "bad.toml").write_text('checkpoint = "digits_mlp.safetensors"\n' + bad)
    write_target(project, ["info.nonfinite == 0"])
    code, envelope = checked("bad.toml", "run.toml")
    assert code == 2
    wrong, right = envelope["result"]["targets"]
    assert [r["decision"] for r in wrong["rules"]] == ["error"]
    assert "the target cannot be used" in wrong["rules"][0]["message"]
    assert [r["decision"] for r in right["rules"]] == ["pass"]


def test_a_missing_baseline_leaves_the_other_rules_decided(project: Path) -> None:
    """The rule that needs it has no answer; a violation beside it is still one, and ends with 1."""
    write_target(
        project, ["gradients.loss < baseline", "gradients.loss > 1", "info.nonfinite == 0"]
    )
    code, envelope = checked("run.toml", "--baseline", "none.json")
    assert decisions(envelope) == ["error", "violation", "pass"]
    assert code == 1
