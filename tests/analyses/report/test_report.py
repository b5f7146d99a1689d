"""A report has the same answers as its analyses one by one, from a model that is loaded once."""

import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from curvcli.analyses.report.headline import headline
from curvcli.analyses.report.run import _names
from curvcli.analyses.report.view import view
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.api import analyse, load
from curvcli.errors import CurvError, UsageError
from curvcli.loading.target import Target
from curvcli.report.data import Cards, Chart, Headline, Section, Sentence, Table, flat
from tests.oracles.program import ROOT, answer, invoke

LINEAR = str(ROOT / "sample_models" / "linear_regression.toml")
MLP = str(ROOT / "sample_models" / "digits_mlp.toml")
QUICK = ("hessian", "gradients", "backprop")


def plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The trained weights, and three steps away from them."""
    folder = tmp_path_factory.mktemp("run")
    weights = load_file(ROOT / "sample_models" / "linear_regression.safetensors")
    generator = torch.Generator().manual_seed(0)
    noise = {k: torch.randn(v.shape, generator=generator) for k, v in weights.items()}
    paths = []
    for step in range(3):
        path = folder / f"step_{step}.safetensors"
        save_file({k: v + 0.1 * step * noise[k] for k, v in weights.items()}, path)
        paths.append(str(path))
    return paths


def test_answers_are_those_of_the_analyses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = Target.make_objective
    monkeypatch.setattr(Target, "make_objective", lambda self, nonfinite: made.append(1) or make(self, nonfinite))  # type: ignore[func-returns-value]  # fmt: skip
    report = analyse("report", load(LINEAR), analysis=list(QUICK)).result
    assert len(made) == 1
    assert [part.analysis for part in report.parts] == list(QUICK)
    for part in report.parts:
        alone = analyse(part.analysis, load(LINEAR))
        assert plain(part.result) == plain(alone.result)
        assert part.verdict == alone.headline
        assert part.findings == alone.findings
    assert report.overall is None
    assert not report.left_out


def test_every_analysis_of_one_target_is_in_the_report() -> None:
    names = _names([])
    assert {"hessian", "landscape", "sharpness", "jacobian", "lr"} <= {*names}
    assert not {"report", "check", "compare", "track", "init", "doctor"} & {*names}
    with pytest.raises(UsageError, match="hesian"):
        _names(["hesian"])


def test_a_section_and_a_card_for_each() -> None:
    found = analyse("report", load(LINEAR), analysis=["hessian", "saddle"])
    assert found.question is not None
    # Also of an answer that was read from JSON.
    read = msgspec.convert(plain(found.result), found.question.result)
    for result in (found.result, read):
        blocks = found.question.view(result)
        sections = [b for b in blocks if isinstance(b, Section)]
        assert [s.title for s in sections] == ["hessian", "saddle"]
        assert all(s.meaning and s.blocks and s.headline for s in sections)
        (cards,) = (b for b in blocks if isinstance(b, Cards))
        assert [c.label for c in cards.cards] == ["Curvature", "Critical point"]
        assert len(flat(blocks)) > len(blocks)


def test_what_does_not_fit_the_budget_is_named() -> None:
    code, told = answer("report", LINEAR, "--budget", "0s")
    assert code == 3
    assert told["error"]["code"] == "no-answer"


def test_reading_data_is_not_at_the_expense_of_the_first_analysis(tmp_path: Path) -> None:
    """Data that takes more than half of the first share, but little of the budget, is read as a whole."""
    data = tmp_path / "slow.py"
    data.write_text(
        "import time, torch\n"
        "def batches():\n"
        "    for seed in range(4):\n"
        "        time.sleep(0.6)\n"
        "        x = torch.randn(8, 30, generator=torch.Generator().manual_seed(seed))\n"
        "        yield x, x[:, :1]\n"
    )
    begun: list[str] = []
    journal = Journal(
        progress=lambda stage: begun.append(stage.what),
        interrupted=lambda: any("saddle" in b for b in begun),
    )
    # Twelve analyses: the first may have a sixth of it.
    found = analyse("report", load(LINEAR, data=f"{data}:batches"), journal, budget="20s").result
    assert [p.analysis for p in found.parts] == ["hessian"]
    assert found.targets[0].samples == 32


def test_an_interrupted_report_holds_what_is_known() -> None:
    begun: list[str] = []

    def progress(stage: Stage) -> None:
        begun.append(stage.what)

    journal = Journal(progress=progress, interrupted=lambda: any("gradients" in b for b in begun))
    found = analyse("report", load(LINEAR), journal, analysis=list(QUICK))
    assert not found.complete
    assert [p.analysis for p in found.result.parts] == ["hessian"]
    assert [one.analysis for one in found.result.left_out] == ["gradients", "backprop"]
    assert "without an answer: gradients, backprop; the report says why" in found.notes
    assert found.headline is not None
    assert "Only a part" in found.headline.sentence


def test_an_analysis_that_fails_leaves_the_others() -> None:
    # Without a loss only what needs none can be asked.
    target = load(
        str(ROOT / "sample_models" / "digits_mlp.safetensors"), data=str(ROOT / "sample_models" / "digits.npz"),
        model=f"{ROOT}/sample_models/models.py:DigitsMLP", max_batches=1, batch_size=8,
    )  # fmt: skip
    found = analyse("report", target, analysis=["jacobian", "hessian"]).result
    assert [p.analysis for p in found.parts] == ["jacobian"]
    assert [(one.analysis, "loss" in one.reason) for one in found.left_out] == [("hessian", True)]
    with pytest.raises(CurvError):
        analyse("report", load("missing.pt", model="x:y", data="z.npz"), analysis=["hessian"])


def test_two_checkpoints_stand_side_by_side(checkpoints: list[str]) -> None:
    subject = load(LINEAR, checkpoint=checkpoints[0])
    found = analyse("report", subject, analysis=["hessian"], compare=checkpoints[2])
    assert found.question is not None
    result = found.result
    assert result.overall is not None
    assert result.overall.analysis == "compare"
    # A quadratic: the loss on the line between two points has no barrier.
    assert result.overall.result.line.height == pytest.approx(0.0, abs=1e-6)
    assert [p.target for p in result.parts] == checkpoints[::2]
    assert [t.checkpoint for t in result.targets] == checkpoints[::2]
    told = [b.text for b in found.question.view(result)[:2] if isinstance(b, Sentence)]
    assert [text.partition(",")[0] for text in told] == ["A", "B"]
    section = found.question.view(result)[-3]
    assert isinstance(section, Section)
    assert [type(b) for b in section.blocks] == [Section, Section]


def test_several_checkpoints_are_a_training_run(checkpoints: list[str]) -> None:
    folder = str(Path(checkpoints[0]).parent)
    code, told = answer("report", LINEAR, folder, "--analysis", "hessian")
    assert code == 0
    result = told["result"]
    assert result["overall"]["analysis"] == "track"
    assert [p["step"] for p in result["overall"]["result"]["points"]] == [0, 1, 2]
    assert [p["target"] for p in result["parts"]] == [checkpoints[-1]]
    refused = invoke("report", LINEAR, folder, "--compare", checkpoints[0])
    assert refused.exit_code == 2
    assert "--compare" in refused.stderr


@pytest.mark.parametrize(
    "given",
    [
        (LINEAR, "--batch-size", "64", "--max-batches", "2", "--dtype", "float64"),
        (LINEAR, "--params", "*weight", "--params", "*bias", "--train-mode", "--seed", "3"),
        (
            str(ROOT / "sample_models" / "digits_mlp.safetensors"), "--model",
            f"{ROOT}/sample_models/models.py:DigitsMLP", "--data", f"{ROOT}/sample_models/digits.npz",
            "--loss", "cross_entropy", "--max-batches", "1", "--batch-size", "8",
        ),
    ],
)  # fmt: skip
def test_the_command_of_a_section_gives_its_answer_again(given: tuple[str, ...]) -> None:
    _, told = answer("report", *given, "--analysis", "gradients")
    (part,) = told["result"]["parts"]
    program, *words = shlex.split(part["command"])
    assert program == "curvcli"
    _, alone = answer(*words)
    assert alone["result"] == part["result"]


def test_a_report_shows_the_jacobian_of_every_layer(tmp_path: Path) -> None:
    """With the command that does so too; what the target file says about it holds."""
    _, told = answer("report", MLP, "--analysis", "jacobian", "--max-batches", "1")
    (part,) = told["result"]["parts"]
    assert len(part["result"]["layers"]) == 3
    assert "--per-layer" in part["command"]
    _, alone = answer(*shlex.split(part["command"])[1:])
    assert alone["result"] == part["result"]
    folder = ROOT / "sample_models"
    own = tmp_path / "own.toml"
    own.write_text(
        f'checkpoint = "{folder}/digits_mlp.safetensors"\nmodel = "{folder}/models.py:DigitsMLP"\n'
        f'data = "{folder}/digits.npz"\nmax-batches = 1\n[jacobian]\nper-layer = false\n'
    )
    _, told = answer("report", str(own), "--analysis", "jacobian")
    assert told["result"]["parts"][0]["result"]["layers"] == []
    assert "layer" not in told["result"]["parts"][0]["command"]


@pytest.mark.parametrize(
    ("words", "title"),
    [
        (["report", "--analysis", "hessian"], "curvcli report: {folder}/step_0.safetensors"),
        (["report", "--analysis", "hessian", "--compare", "{path}/step_2.safetensors"],
         "curvcli report: {folder}/step_0.safetensors and {folder}/step_2.safetensors"),
        (["report", "{path}/step_2.safetensors", "--analysis", "hessian"],
         "curvcli report: 2 checkpoints up to {folder}/step_2.safetensors"),
        (["compare", "{path}/step_2.safetensors"],
         "curvcli compare: {folder}/step_0.safetensors and {folder}/step_2.safetensors"),
        (["track", "{path}/step_2.safetensors"], "curvcli track: 2 checkpoints up to step_2.safetensors"),
        (["hessian"], "curvcli hessian: step_0.safetensors"),
    ],
)  # fmt: skip
def test_a_title_names_what_the_page_is_about(
    checkpoints: list[str], words: list[str], title: str
) -> None:
    path = Path(checkpoints[0]).parent
    given = [word.format(path=path) for word in words[1:]]
    folder = ROOT / "sample_models"
    done = invoke(
        words[0], checkpoints[0], *given, "--model", f"{folder}/models.py:LinearRegression", "--data",
        f"{folder}/breast_cancer.npz", "--loss", "mse", "--static", "--format", "html",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert f"<h1>{title.format(folder=path.name)}</h1>" in done.stdout


@pytest.mark.parametrize("suffix", ["html", "md", "png", "csv", "json"])
def test_a_report_is_written_in_every_format(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"report.{suffix}"
    done = invoke("report", LINEAR, "--analysis", "hessian", "--static", "-o", str(file))
    assert done.exit_code == 0, done.stderr
    assert file.stat().st_size > 500


@pytest.mark.parametrize(
    ("name", "looks", "unknown"),
    [
        ("taylor", 8, "Only a part"),
        ("sharpness", 0, "Nothing was measured"),
        ("landscape", 0, "is not known"),
        ("trace", 0, "is not known"),
    ],
)
def test_a_run_that_ends_at_once_claims_nothing(name: str, looks: int, unknown: str) -> None:
    """No empty table, no picture of a single point, and no sentence about what was not looked at."""
    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) > looks

    found = analyse(name, load(MLP, max_batches=1), Journal(interrupted=stop))
    assert not found.complete
    assert found.question is not None
    assert found.headline is not None
    assert found.headline.level == "attention"
    assert unknown in found.headline.sentence
    assert not {"convex", "sums to", "right to"} & {*found.headline.sentence.split()}
    blocks = flat(found.question.view(found.result))
    assert all(b.rows for b in blocks if isinstance(b, Table))
    assert all(len(s.x) > 1 for b in blocks if isinstance(b, Chart) for s in b.series)


def test_what_all_answers_note_is_said_once() -> None:
    """Below the sections; a note of one of them stays with it."""
    result = analyse("report", load(LINEAR), analysis=["hessian", "saddle"]).result
    first, second = result.parts
    noted = msgspec.structs.replace(
        result,
        parts=[
            msgspec.structs.replace(first, notes=["shared", "own"]),
            msgspec.structs.replace(second, notes=["shared"]),
        ],
    )
    blocks = view(noted)
    assert [list(b.notes) for b in blocks if isinstance(b, Section)] == [["own"], []]
    said = [b.text for b in blocks if isinstance(b, Sentence) and "shared" in b.text]
    assert said == ["All answers: shared."]


def test_answers_that_ended_early_are_named_not_told() -> None:
    """What is wrong with a whole answer comes first; of those that time cut short the names are enough."""
    found = analyse("report", load(LINEAR), analysis=["hessian", "backprop"])
    first, second = found.result.parts
    early = msgspec.structs.replace(
        first, complete=False, verdict=Headline("attention", "λ between 1 and 9.")
    )
    for other, told in (
        (second, "1 of 2 answers is good. Ended early, with what was known by then: hessian. "),
        (
            msgspec.structs.replace(second, verdict=Headline("attention", "Wrong.")),
            "0 of 2 answers are good. Look first at backprop: Wrong. Ended early",
        ),
    ):
        result = msgspec.structs.replace(found.result, parts=[early, other])
        sentence = headline(Answer(result, [], [], complete=False)).sentence
        assert sentence.startswith(told)
        assert "λ between" not in sentence
