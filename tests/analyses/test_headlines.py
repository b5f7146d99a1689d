"""The first sentence of every answer: short, without paths of the JSON, and never better than what was found."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from msgspec.structs import replace
from torch import nn

import curvcli
from curvcli.analyses.registry import get
from curvcli.analyses.shared.answer import Answer
from curvcli.report.data import Finding, Headline
from tests.oracles.samples import X50, Y50

RECORDED = sorted((Path(__file__).parent.parent / "contracts" / "answers").glob("*.json.gz"))


def recorded(path: Path) -> tuple[str, Answer[Any]] | None:
    """Command and answer of a recorded run; None where there was none."""
    whole = json.loads(gzip.decompress(path.read_bytes()))
    if whole["result"] is None:
        return None
    question = get(whole["command"])
    # Times and caches are not recorded.
    for target in whole["result"].get("targets", []):
        for run in target.get("analyses", []):
            run |= {"seconds": 0.0, "cached": False}
    if question.name == "report":
        for part in whole["result"]["parts"]:
            part["seconds"] = 0.0
    result = msgspec.convert(whole["result"], question.result)
    findings = msgspec.convert(whole["findings"], list[Finding])
    return question.name, Answer(result, findings, [], whole["complete"])


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: p.name.removesuffix(".json.gz"))
def test_the_sentence_is_short_and_no_better_than_the_findings(path: Path) -> None:
    made = recorded(path)
    if made is None:
        pytest.skip("an error was recorded")
    command, answer = made
    said = get(command).headline(answer)
    assert said.sentence.endswith(".") or "curvcli" in said.sentence
    assert "\n" not in said.sentence
    assert len(said.sentence) < 420
    assert not re.search(r"\.\w+\[\d+\]|None|nan", said.sentence), said.sentence
    worst = {f.severity for f in answer.findings}
    if "error" in worst and command != "check":
        assert said.level == "bad"
    if "warning" in worst or not answer.complete:
        assert said.level != "good"


def test_an_error_takes_the_place_of_the_sentence_and_an_unfinished_run_is_said() -> None:
    """Whatever the question."""
    name, answer = next(m for p in RECORDED if p.name.startswith("step-") and (m := recorded(p)))
    error = Finding(
        "step.x", "error", "loss", 1.0, 2.0, "the products are wrong [> 1: source]: stop"
    )
    found = get(name).headline(Answer(answer.result, [error], [], True))
    assert found == Headline("bad", "The products are wrong: stop.")
    part = get(name).headline(Answer(answer.result, [], [], False))
    assert part.level == "attention"
    assert "Only a part" in part.sentence


def test_a_corpse_is_not_said_to_train() -> None:
    """All units dead: no rate works, whatever short runs at a constant loss do."""
    torch.manual_seed(0)
    first = nn.Linear(4, 6)
    nn.init.constant_(first.bias, -100.0)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(6, 3))
    said = curvcli.lr(model, "cross_entropy", (X50, Y50), steps=5).headline
    assert said is not None
    assert said.level == "attention"
    assert "dead" in said.sentence


def test_rules_that_hold_over_a_network_at_chance_get_no_tick() -> None:
    """Labels without signal: nothing is broken, and nothing was learned."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    said = curvcli.check(model, "cross_entropy", (X50, Y50), rules=["gradients.loss > 0"]).headline
    assert said is not None
    assert said.level == "attention"
    assert "no better than a constant" in said.sentence


def _answered(begin: str) -> Answer[Any]:
    return next(m for p in RECORDED if p.name.startswith(begin) and (m := recorded(p)))[1]


def test_what_is_hardly_there_gets_no_tick() -> None:
    """A trace within its error, an output that does not depend on its input, and steps that change nothing."""
    trace = _answered("trace-mlp").result
    vague = replace(trace, trace=replace(trace.trace, standard_error=abs(trace.trace.value)))
    said = get("trace").headline(Answer(vague, [], [], True))
    assert said.level == "attention"
    assert "not known yet" in said.sentence
    jacobian = _answered("jacobian-mlp").result
    small = replace(jacobian.spectral, maximum=4e-12, median=3e-12)
    said = get("jacobian").headline(Answer(replace(jacobian, spectral=small), [], [], True))
    assert said.level == "attention"
    assert said.sentence.startswith("The output hardly depends on the input.")
    step = _answered("step-linear").result
    still = [replace(m, true_change=-1e-9) for m in step.methods]
    said = get("step").headline(Answer(replace(step, methods=still), [], [], True))
    assert "leaves the loss at" in said.sentence


def _said(name: str) -> str:
    """The sentence of a recorded answer."""
    made = recorded(RECORDED[0].parent / f"{name}.json.gz")
    assert made is not None
    command, answer = made
    return get(command).headline(answer).sentence


def test_rough_figures_are_called_rough() -> None:
    """An interval that leaves everything open is not said; a step that climbs is; a norm within its error too."""
    assert "a rough figure" in _said("density-mlp")
    assert "to 98 %" not in _said("density-mlp")
    assert "climbs, towards a saddle point" in _said("step-mlp")
    assert "cannot be told whether their norm grows" in _said("gradients-bytes_gpt")
    assert "sums to 42 ± 2" in _said("trace-mlp")


def test_sentences_use_no_words_that_they_do_not_explain() -> None:
    """Directions and points by what they are."""
    assert "Along the way to far.safetensors" in _said("taylor-to")
    assert "Along the Newton step" in _said("taylor-steps")
    assert "straight line between two others" in _said("landscape-cnn")
    assert "Not one of 4 eigenvalues has converged" in _said("hessian-exploding")
    assert "up to 1050 times" in _said("jacobian-gpt")
    assert "on this data is stable" in _said("hessian-digits_mlp")


def test_why_the_lowest_rate_failed_is_said() -> None:
    """Also where the loss fell all the same."""
    made = recorded(RECORDED[0].parent / "lr-linear.json.gz")
    assert made is not None
    answer: Answer[Any] = made[1]
    failed = [t for t in answer.result.trials if t.rate == answer.result.fails_at]
    assert "failed is 0.137: " in get("lr").headline(answer).sentence
    trials = [replace(t, verdict="unstable") if t in failed else t for t in answer.result.trials]
    unstable = Answer(replace(answer.result, trials=trials), [], [])
    assert "too high for the sharpest direction" in get("lr").headline(unstable).sentence
