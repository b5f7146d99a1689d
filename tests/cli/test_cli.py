"""The program as users run it answers, explains and fails as it promises: processes, pipes and pseudo-terminals."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from curvcli.analyses.registry import NAMES, get
from curvcli.report.data import json_schema
from tests.oracles.program import ROOT, answer, in_terminal, invoke, run

MLP = str(ROOT / "sample_models" / "digits_mlp.toml")
QUICK = ("--top", "2", "--bottom", "1")


def test_json_holds_the_contract_and_matches_its_schema() -> None:
    """The exact keys that other programs rely on."""
    code, envelope = answer("hessian", MLP)
    assert code == 0
    jsonschema.validate(envelope, json_schema(get("hessian").result))
    assert list(envelope) == [
        "schema", "command", "version", "target", "verdict", "result", "complete", "findings", "notes", "cost", "error",
    ]  # fmt: skip
    assert envelope["schema"] == "curvcli/1"
    assert set(envelope["target"]) == {
        "checkpoint", "checkpoint_sha256", "model", "data", "data_sha256", "samples", "loss_terms",
        "loss", "mode", "dtype", "device", "seed", "fit", "guess",
    }  # fmt: skip
    result = envelope["result"]
    assert {
        "top", "bottom", "reach", "status", "loss", "gradient_norm", "parameters", "matrix", "hvp_check",
    } <= set(result)  # fmt: skip
    assert (len(result["top"]), len(result["bottom"])) == (10, 3)
    assert set(result["top"][0]) == {"value", "residual", "converged", "batch_standard_error"}
    assert set(result["reach"]) == {"lower", "upper", "probability"}
    assert set(envelope["cost"]) == {"matvecs", "gradients", "seconds", "peak_memory", "processes"}
    assert all(pair["converged"] for pair in result["top"] + result["bottom"])
    assert result["reach"]["lower"] <= result["bottom"][0]["value"]


def test_the_same_command_prints_the_same_digits() -> None:
    first, second = (answer("hessian", MLP, *QUICK)[1]["result"] for _ in range(2))
    assert first == second
    assert answer("hessian", MLP, *QUICK, "--seed", "1")[1]["result"] != first


@pytest.mark.parametrize("command", list(NAMES))
def test_every_command_has_help_and_a_schema(command: str) -> None:
    shown = invoke(command, "--help")
    assert shown.exit_code == 0
    for option in get(command).fields():
        # The flag of a table takes one entry at a time: thresholds, --threshold.
        assert "--" + option.name.replace("_", "-").removesuffix("s") in shown.stdout
        assert option.help
    schema = invoke("schema", command)
    jsonschema.Draft202012Validator.check_schema(json.loads(schema.stdout))


def test_help_schema_and_version_do_not_import_torch() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom curvcli.cli.main import make_app\n"
        "for a in (['--help'], ['hessian', '--help'], ['schema', 'hessian'], ['--version']):\n"
        "    assert CliRunner().invoke(make_app(), a).exit_code == 0, a\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_numbers_are_never_cut_and_user_text_is_not_interpreted(tmp_path: Path) -> None:
    """In a narrow pipe every number is whole; markup and control characters in names stay text."""
    save_file({"[red]evil\x1b[31m.weight": torch.full((3,), 1.234e-5)}, tmp_path / "m.safetensors")
    done = run("info", str(tmp_path / "m.safetensors"), COLUMNS="60")
    assert "1.234e-05" in done.stdout
    assert "\x1b" not in done.stdout
    assert "[red]" in done.stdout.replace("\n", "")
    narrow = run("hessian", MLP, *QUICK, COLUMNS="25")
    assert re.search(r"9\.336\d* ± \de-0\d", narrow.stdout)
    assert "…" not in narrow.stdout


@pytest.mark.parametrize("kind", ["markdown", "html"])
def test_other_formats(kind: str, tmp_path: Path) -> None:
    suffix = {"markdown": "md", "html": "html"}[kind]
    path = tmp_path / f"out.{suffix}"
    done = invoke("hessian", MLP, *QUICK, "-o", str(path))
    assert done.exit_code == 0
    assert done.stdout == ""
    text = path.read_text()
    assert "9.336" in text
    assert text == invoke("hessian", MLP, *QUICK, "--format", kind).stdout or kind == "html"
    assert not list(tmp_path.glob("*.tmp"))


def test_html_escapes_what_files_say(tmp_path: Path) -> None:
    save_file({"<script>alert(1)</script>": torch.ones(1)}, tmp_path / "m.safetensors")
    page = invoke("info", str(tmp_path / "m.safetensors"), "--format", "html", "--static").stdout
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_notes_and_errors_go_to_stderr() -> None:
    quick = ("jacobian", str(ROOT / "sample_models/bytes_gpt.toml"), "--top", "1", "--sample", "0")
    done = run(*quick)
    assert done.returncode == 0
    assert "note: fused attention" in done.stderr
    assert "fused attention" not in done.stdout
    silent = run(*quick, "-q")
    assert silent.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("jacobian", "digits_cnn", "--per-layer", "--sample", "0"),
        ("taylor", "digits_mlp", "--max-matvecs", "12"),
        ("step", "digits_mlp", "--max-matvecs", "8"),
        ("hessian", "digits_cnn", "--per-layer", "--top", "2", "--max-matvecs", "8"),
        ("gradients", "digits_lstm", "--reinit", "xavier,kaiming", "--seeds", "2"),
    ],
)
def test_tables_fit_eighty_columns(arguments: tuple[str, ...]) -> None:
    command, name, *options = arguments
    done = run(command, str(ROOT / f"sample_models/{name}.toml"), *options, COLUMNS="80")
    assert done.returncode in (0, 3), done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80


BAD = [
    (["hessian"], "neither a checkpoint nor a model"),
    (["hessian", "none.toml"], "there is no target file"),
    (["hessian", "none.safetensors", "--model", "torch.nn:Identity", "--data", "d.npz", "--loss", "mse"], "no file"),
    (["hessian", MLP, "--loss", "cross_entropi"], "Did you mean 'cross_entropy'"),
    (["hessian", MLP, "--top", "-1"], "--top takes a whole number of at least 0, not -1"),
    (["hessian", MLP, "--tol", "0"], "--tol takes a number above 0"),
    (["hessian", MLP, "--top", "0", "--bottom", "0"], "no eigenvalue is asked for"),
    (["hessian", MLP, "--params", "nothing*"], "no trainable parameter matches"),
    (["hessian", MLP, "--memory", "lots"], "'lots' is not a size"),
    (["hessian", MLP, "--timeout", "soon"], "'soon' is not a duration"),
    (["hessian", MLP, "--device", "tpu"], "--device"),
    (["hessian", MLP, "--device", "cuda:99"], "CUDA"),
    (["hessian", MLP, "--data", "none.npz"], "there is no data file"),
    (["hessian", MLP, "--model-arg", "hidden"], "takes name=value"),
    (["hessian", MLP, "--model-arg", "nonsense=3"], "nonsense"),
    (["hessian", MLP, "--objective", "a:b", "--loss", "mse"], "both a loss and an objective"),
    (["hessian", MLP, "-o", "/nowhere/out.json"], "there is no directory"),
    (["hessian", MLP, "-o", "/"], "is a directory"),
    (["info", "none.pt"], "there is no file"),
    (["info"], "no checkpoint is given"),
    (["schema", "hesian"], "Did you mean 'hessian'"),
    (["hessian", MLP, "--no-such-flag"], "there is no option --no-such-flag"),
    (["gradients", MLP, "--save-vectors", "v"], "gradients has no option --save-vectors, only hessian"),
    (["hessian", MLP, "--json"], "Did you mean --format json?"),
    (["hessian", MLP, "--batchsize", "3"], "Did you mean --batch-size or --max-batches?"),
    (["hessian", MLP, "-k", "3"], "there is no option -k. Did you mean --top?"),
    (["hessian", MLP, "--top"], "option '--top' requires an argument"),
    (["hessian", MLP, "digits.npz"], "data are named by --data"),
    (["hesian"], "No such command"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "match"), BAD, ids=lambda v: " ".join(v)[-40:] if isinstance(v, list) else ""
)
def test_wrong_input_exits_2_with_a_sentence(arguments: list[str], match: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2, done.output
    assert match in done.stderr
    assert "Traceback" not in done.output


def test_errors_are_json_too() -> None:
    code, envelope = answer("hessian", MLP, "--loss", "nonsense")
    assert code == 2
    assert envelope["result"] is None
    assert envelope["error"]["code"] == "loss"
    assert envelope["error"]["exit_code"] == 2
    jsonschema.validate(envelope, json_schema(get("hessian").result))


def test_verbose_shows_the_traceback() -> None:
    assert "Traceback" in invoke("hessian", MLP, "--loss", "nonsense", "--verbose").output


def test_nan_weights_are_a_finding_of_info_and_an_error_of_hessian(tmp_path: Path) -> None:
    tensors = load_file(ROOT / "sample_models/digits_mlp.safetensors")
    tensors["fc1.weight"][0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    path = tmp_path / "nan.safetensors"
    save_file(tensors, path)
    code, envelope = answer("info", str(path))
    assert code == 0
    assert envelope["result"]["nonfinite"] == 3
    assert [f["subject"] for f in envelope["findings"]] == ["fc1.weight"]
    assert invoke("info", str(path), "--strict").exit_code == 1
    model = ["--model", f"{ROOT}/sample_models/models.py:DigitsMLP"]
    data = ["--data", f"{ROOT}/sample_models/digits.npz", "--loss", "cross_entropy"]
    code, envelope = answer("hessian", str(path), *model, *data)
    assert code == 2
    assert envelope["error"]["code"] == "non-finite"


def test_info_reads_headers_only_when_asked() -> None:
    code, envelope = answer(
        "info", str(ROOT / "sample_models/digits_mlp.safetensors"), "--headers-only"
    )
    assert code == 0
    assert envelope["result"]["parameters"] == 17226
    assert envelope["result"]["nonfinite"] is None
    assert all(t["norm"] is None for t in envelope["result"]["tensors"])


def test_a_budget_that_is_too_small_exits_3_with_a_marked_answer() -> None:
    code, envelope = answer("hessian", MLP, "--max-matvecs", "15")
    assert code == 3
    assert envelope["result"]["status"] == "max_matvecs"
    assert any(f["rule"] == "hessian.not-converged" for f in envelope["findings"])


def test_half_precision_checkpoint_has_a_note(tmp_path: Path) -> None:
    tensors = load_file(ROOT / "sample_models/digits_mlp.safetensors")
    save_file({k: v.bfloat16() for k, v in tensors.items()}, tmp_path / "m.safetensors")
    code, envelope = answer(
        "hessian", str(tmp_path / "m.safetensors"), "--model", f"{ROOT}/sample_models/models.py:DigitsMLP",
        "--data", f"{ROOT}/sample_models/digits.npz", "--loss", "cross_entropy", *QUICK,
    )  # fmt: skip
    assert code == 0
    assert envelope["target"]["dtype"] == "float32"
    assert any("bfloat16" in note for note in envelope["notes"])


def test_settings_come_from_pyproject_then_target_file_then_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    samples = ROOT / "sample_models"
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.curvcli]\nmodel = "{samples}/models.py:DigitsMLP"\ndata = "{samples}/digits.npz"\n'
        'loss = "cross_entropy"\nseed = 5\n[tool.curvcli.hessian]\ntop = 1\nbottom = 0\n'
    )
    _, envelope = answer("hessian", str(samples / "digits_mlp.safetensors"), "--project")
    assert envelope["target"]["seed"] == 5
    assert len(envelope["result"]["top"]) == 1
    (tmp_path / "t.toml").write_text(
        f'checkpoint = "{samples}/digits_mlp.safetensors"\nseed = 6\n[hessian]\ntop = 2\n'
    )
    _, envelope = answer("hessian", "t.toml")
    assert envelope["target"]["seed"] == 6
    assert len(envelope["result"]["top"]) == 2
    _, envelope = answer("hessian", "t.toml", "--seed", "7", "--top", "3")
    assert envelope["target"]["seed"] == 7
    assert len(envelope["result"]["top"]) == 3
    (tmp_path / "bad.toml").write_text('chekpoint = "x"\n')
    assert "Did you mean 'checkpoint'" in invoke("hessian", "bad.toml").stderr
    (tmp_path / "bad.toml").write_text("[hessian]\ntopp = 3\n")
    assert "Did you mean 'top'" in invoke("hessian", "bad.toml").stderr


def test_a_checkpoint_takes_the_place_of_that_of_the_target_file(tmp_path: Path) -> None:
    """Its other settings stay, paths on the command line are the shell's, and two checkpoints are one too many."""
    samples = ROOT / "sample_models"
    other = tmp_path / "half.safetensors"
    weights = load_file(samples / "digits_mlp.safetensors")
    save_file({k: v / 2 for k, v in weights.items()}, other)
    target = str(samples / "digits_mlp.toml")
    code, moved = answer("gradients", target, "--checkpoint", str(other))
    assert code == 0
    assert moved["target"]["checkpoint"] == str(other)
    assert moved["result"]["loss"] != answer("gradients", target)[1]["result"]["loss"]
    done = invoke("gradients", str(other), "--checkpoint", str(other))
    assert done.exit_code == 2
    assert "two checkpoints are given" in done.stderr
    assert invoke("track", target, "--checkpoint", str(other)).exit_code == 2


OBJECTIVE = """
import torch
class Graph:
    def __init__(self, seed):
        self.nodes = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
        self.energy = self.nodes.sum()
def build():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 1)
def batches():
    return [Graph(i) for i in range(3)]
def loss(model, graph):
    return (model(graph.nodes).sum() - graph.energy) ** 2
"""


def test_a_model_without_checkpoint_and_an_objective_on_objects(tmp_path: Path) -> None:
    """L = mean_b (1ᵀ(X_b w + b) - e_b)²: its Hessian is 2/3 Σ s_b s_bᵀ with s_b = [Σ rows, 5]."""
    (tmp_path / "train.py").write_text(OBJECTIVE)
    at = str(tmp_path / "train.py")
    code, envelope = answer(
        "hessian", "--model", f"{at}:build", "--data", f"{at}:batches", "--objective", f"{at}:loss",
        "--top", "3", "--bottom", "1",
    )  # fmt: skip
    assert code == 0
    sums = [torch.randn(5, 4, generator=torch.Generator().manual_seed(i)).sum(0) for i in range(3)]
    s = torch.stack([torch.cat([v, torch.tensor([5.0])]) for v in sums]).double()
    expected = torch.linalg.eigvalsh(2 / 3 * s.T @ s).flip(0)[:3]
    # Computed in float32.
    values = [pair["value"] for pair in envelope["result"]["top"]]
    assert values == pytest.approx(expected.tolist(), rel=1e-5)
    assert envelope["target"]["samples"] == 3


def test_head_closing_the_pipe_is_no_error() -> None:
    info = f"{sys.executable} -m curvcli info sample_models/bytes_gpt.safetensors --format json"
    command = f"{info} | head -n 2; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


def interrupted(*arguments: str) -> tuple[int, str, str]:
    """Run, send Ctrl-C once products have begun, and collect."""
    process = subprocess.Popen(
        [sys.executable, "-m", "curvcli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_ctrl_c_gives_a_partial_answer() -> None:
    gpt = "sample_models/bytes_gpt.toml"
    code, out, err = interrupted("hessian", gpt, "--top", "60", "--bottom", "40", "--tol", "1e-7",
                                 "--format", "json")  # fmt: skip
    assert code == 3, err
    assert "ending with what is known" in err
    envelope = json.loads(out)
    if envelope["result"] is not None:  # else the signal came before the first product
        assert envelope["result"]["status"] == "interrupted"
        assert envelope["result"]["top"]


def test_colour_and_progress_on_a_terminal_only() -> None:
    code, shown = in_terminal("hessian", MLP, *QUICK)
    assert code == 0
    assert "products" in shown  # progress
    assert "\x1b[1m" in shown  # bold headings
    code, plain = in_terminal("hessian", MLP, *QUICK, "-q", NO_COLOR="1")
    assert not re.search(r"\x1b\[3[0-9]m", plain)
    assert "\x1b" not in run("hessian", MLP, *QUICK).stdout


def test_errors_are_red_on_a_terminal_only() -> None:
    """The word and not the sentence, which stays readable on any background."""
    assert "\x1b[1;31merror:\x1b[0m there is no target file" in in_terminal("hessian", "no.toml")[1]
    assert "31m" not in in_terminal("hessian", "no.toml", NO_COLOR="1")[1]
    assert run("hessian", "no.toml").stderr.startswith("error: there is no target file")


@pytest.mark.full
def test_every_sample_gives_an_answer(samples: Path) -> None:
    found = sorted(samples.glob("*.toml"))
    assert len(found) >= 10
    for path in found:
        code, envelope = answer("hessian", str(path), *QUICK)
        assert code == 0, path.name
        assert envelope["result"]["status"] == "converged", path.name


def test_doctor_passes_here() -> None:
    code, envelope = answer("doctor")
    assert code == 0
    assert envelope["result"]["healthy"]
    assert {t["passed"] for t in envelope["result"]["tests"]} == {True}


def test_linear_regression_sample_has_its_closed_form(samples: Path) -> None:

    data = np.load(samples / "breast_cancer.npz")
    design = np.concatenate([data["x"], np.ones((len(data["x"]), 1))], 1).astype(np.float64)
    expected = np.linalg.eigvalsh(2 / len(design) * design.T @ design)[::-1]
    _, envelope = answer("hessian", str(samples / "linear_regression.toml"))
    for pair, value in zip(envelope["result"]["top"], expected, strict=False):
        assert abs(pair["value"] - value) <= pair["residual"]


def test_json_of_all_four_is_strict(samples: Path) -> None:
    for command in ("saddle", "taylor", "step", "backprop"):
        done = invoke(command, str(samples / "saddle.toml"), "--format", "json")
        assert done.exit_code == 0, done.stderr
        envelope = json.loads(done.stdout, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
        assert envelope["command"] == command
