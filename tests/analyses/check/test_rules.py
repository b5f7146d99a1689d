"""Rules are checked against the types of answers before anything runs, and decided by intervals."""

import contextlib
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from torch import nn

from curvcli import Batch, Subject, analyse, make_objective
from curvcli.analyses.check.decision import decide
from curvcli.analyses.check.expression import parse
from curvcli.analyses.check.rules import RuleEntry, make_rule
from curvcli.analyses.check.run import DEFAULT_RULES
from curvcli.analyses.gradients.result import GradientsResult
from curvcli.analyses.hessian.result import HessianResult
from curvcli.analyses.saddle.result import Extreme
from curvcli.analyses.shared.figures import Figure, Precision, figures
from curvcli.analyses.shared.paths import leaf
from curvcli.analyses.shared.spectrum.eigenpairs import Eigenpair, Reach
from curvcli.errors import UsageError
from curvcli.loading.loss import loss_terms
from curvcli.report.cost import CostInfo
from curvcli.report.data import Envelope, Finding

BAD_RULES = [
    ("hesian.top[0].value < 1", "Did you mean 'hessian'"),
    ("hessian.topp[0].value < 1", "Did you mean 'top'"),
    ("hessian.top[0].valeu < 1", "Did you mean 'value'"),
    ("hessian.top.value < 1", "is a list"),
    ("hessian.top < 1", "not a single value"),
    ("hessian.loss.value < 1", "a single value"),
    ("hessian.loss", "a comparison"),
    ("hessian.loss <", "not understood: invalid syntax"),
    ("hessian.loss < 1 2", "not understood"),
    ("hessian.loss < $", "at character 16"),
    ("  hessian.top[*].value < 1 1", "at character 28"),
    ("hessian.loss < 1  # comment", "'#' has no meaning at character 19"),
    ("hessian.top[:].value < 1", "':' has no meaning"),
    ("hessian.top[...].value < 1", "is expected at character 13"),
    ("abs(hessian.loss, x=2) < 1", "abs() is expected"),
    ("hessian.loss) < (2", "not understood"),
    ("saddle.verdict == 'a\\d'", "has no meaning"),
    ("1 < 2", "names no figure"),
    ("hessian.loss < 'high'", "compares a number with a text"),
    ('saddle.verdict != "strict-sadle"', "Did you mean 'strict-saddle'"),
    ('saddle.verdict in ["minimum"]', "is never 'minimum'"),
    ('saddle.verdict < "strict-saddle"', "orders text"),
    ('saddle.verdict + 1 == 2', "calculates with text"),
    ("hessian.loss < baseline * info.bytes", "which baseline"),
    ("hessian.top[*].value < hessian.loss", "beside another figure"),
    ("__import__('os').system('true') == 0", "a field, + - * / or abs() is expected at character 1"),
    ("hessian.loss.__class__ == 1", "a single value"),
    ("hessian.__class__ == 1", "no field '__class__'"),
    ("check.count.passed > 0", "no analysis 'check'"),
    ("(" * 300 + "hessian.loss" + ")" * 300 + " < 1", "nested too deeply"),
    ("-" * 3000 + "1 < hessian.loss", "nested too deeply"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "match"), BAD_RULES, ids=lambda v: v[:30])
def test_a_wrong_rule_is_refused_with_what_is_right(text: str, match: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_rule(text)
    assert match in caught.value.message


def test_a_star_in_a_name_is_a_letter() -> None:
    assert (
        str(parse('gradients.layers["x[*]"].kind == "a"').left) == 'gradients.layers["x[*]"].kind'
    )


@given(st.text(alphabet="abhesian.top[0]<>=!+-*/() \"'12e_\u00e9\n", max_size=40))
def test_any_text_is_a_rule_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        make_rule(text)


def test_default_rules_are_valid() -> None:
    assert [make_rule(entry).text for entry in DEFAULT_RULES]


def envelope(command: str, result: Any, findings: list[Finding] | None = None) -> Envelope[Any]:
    return Envelope(
        command=command, version="0", target=None, result=result, findings=findings or [], notes=[],
        cost=CostInfo(0, 0, 0.0, None),
    )  # fmt: skip


def hessian_result(**changes: Any) -> HessianResult:
    top = [Eigenpair(10.0, 0.5, True, None), Eigenpair(4.0, 0.25, True, None)]
    fields: dict[str, Any] = {
        "top": top, "bottom": [Eigenpair(-1.0, 0.125, True, None)], "reach": Reach(-2.0, 12.0, 0.999),
        "status": "converged", "loss": 0.5, "gradient_norm": 0.1, "parameters": 7, "untouched": 0,
        "matrix": "hessian", "hvp_check": None, "order": "value", "products": "keep", "micro_batch": None,
        "basis": 20, "restarts": 0, "copies_found": 0,
    }  # fmt: skip
    return HessianResult(**{**fields, **changes})


def decision(text: str | RuleEntry, baseline: Figure | None = None, **changes: Any) -> str:
    rule = make_rule(text)
    answers = {"hessian": envelope("hessian", hessian_result(**changes))}
    (outcome,) = decide(rule, answers, lambda _: Precision(0.999, "float32"), lambda _: baseline)
    return outcome.decision


DECISIONS = [
    # top[0] is 10 ± 0.5, and nothing is above 12; top[1] is 4 ± 0.25; bottom[0] is -1 ± 0.125, none below -2.
    ("hessian.top[0].value < 13", "pass"),
    ("hessian.top[0].value < 11", "undecided"),
    ("hessian.top[0].value < 9.4", "violation"),
    ("hessian.top[0].value < 9.5", "violation"),
    ("hessian.top[1].value < 4.3", "pass"),
    ("hessian.top[1].value < 4.25", "undecided"),
    ("hessian.top[1].value <= 4.25", "pass"),
    ("hessian.top[1].value < 4", "undecided"),
    ("hessian.top[1].value < 3.75", "violation"),
    ("hessian.top[1].value <= 3.75", "undecided"),
    ("hessian.top[1].value > 3.7", "pass"),
    ("3.7 < hessian.top[1].value", "pass"),
    ("hessian.top[1].value == 4", "undecided"),
    ("hessian.top[1].value != 5", "pass"),
    ("hessian.top[-1].value < 5", "pass"),
    ("hessian.bottom[0].value > -1.5", "undecided"),
    ("hessian.bottom[0].value > -2.5", "pass"),
    ("hessian.bottom[0].value > -0.5", "violation"),
    ("abs(hessian.bottom[0].value) < 2.5", "pass"),
    ("hessian.top[0].value / hessian.top[1].value < 4", "pass"),
    ("hessian.top[0].value / hessian.top[1].value < 2.2", "violation"),
    ("hessian.top[0].value / hessian.top[1].value < 3", "undecided"),
    ("hessian.top[0].value - 2 * hessian.top[1].value > 2", "undecided"),
    ("1 / (hessian.top[1].value - 4) < 1", "undecided"),
    ("hessian.parameters == 7", "pass"),
    ("hessian.parameters < 7", "violation"),
    ('hessian.status == "converged"', "pass"),
    ('hessian.status in ["converged", "timeout"]', "pass"),
    ('hessian.status not in ["converged"]', "violation"),
    ("hessian.top[0].converged == true", "pass"),
    ("hessian.loss < 0.5", "undecided"),
    ("hessian.loss < 0.50001", "pass"),
    ("hessian.hvp_check < 1", "error"),
    ("hessian.hvp_check == null", "pass"),
    ("hessian.hvp_check != null", "violation"),
    ("hessian.findings.errors == 0", "pass"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), DECISIONS)
def test_decisions_are_by_the_interval(text: str, expected: str) -> None:
    assert decision(text) == expected


def test_an_optional_rule_without_a_figure_is_skipped() -> None:
    assert decision(RuleEntry("hessian.hvp_check < 1", optional=True)) == "skipped"


def test_the_reach_of_magnitudes_is_not_that_of_values() -> None:
    assert decision("hessian.top[0].value < 11", order="magnitude") == "pass"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(9.0, 9.0, "violation"), (11.0, 11.1, "pass"), (8.0, 11.5, "undecided")],
)
def test_a_baseline_has_an_interval_too(low: float, high: float, expected: str) -> None:
    before = Figure("hessian.top[0].value", (low + high) / 2, low, high, "residual")
    changed = {"reach": Reach(-2.0, 10.5, 0.999)}
    assert decision("hessian.top[0].value <= baseline", before, **changed) == expected
    assert decision("hessian.top[0].value <= baseline") == "error"


def test_every_entry_of_a_list_is_judged() -> None:
    rule = make_rule("hessian.top[*].value < 6")
    answers = {"hessian": envelope("hessian", hessian_result())}
    found = decide(rule, answers, lambda _: Precision(), lambda _: None)
    assert [(o.figure.path, o.decision) for o in found if o.figure] == [
        ("hessian.top[0].value", "violation"),
        ("hessian.top[1].value", "pass"),
    ]


def test_standard_errors_are_widened_by_the_confidence() -> None:
    """Two-sided normal quantiles: 1.959964 at 95 %, 3.290527 at 99.9 %."""
    from curvcli.analyses.saddle.result import IndexEstimate

    item = IndexEstimate(-0.1, 5.0, 0.5, 8)
    for confidence, z in ((0.95, 1.959964), (0.999, 3.290527)):
        path = leaf(IndexEstimate, ("value",), "x")
        (figure,) = figures(item, path, "x", Precision(confidence))
        assert figure.bounds == pytest.approx((5 - z * 0.5, 5 + z * 0.5), rel=1e-6)
        assert figure.basis == "standard error"


def test_an_unknown_error_leaves_everything_open() -> None:
    from curvcli.analyses.saddle.result import IndexEstimate

    path = leaf(IndexEstimate, ("value",), "x")
    (figure,) = figures(IndexEstimate(-0.1, 5.0, None, 1), path, "x", Precision())
    assert figure.bounds == (-math.inf, math.inf)


def test_a_value_with_its_error_may_be_named_without_value() -> None:
    path = leaf(Extreme, ("residual",), "x")
    assert path.steps == ("residual",)
    from curvcli.analyses.saddle.result import SaddleResult

    assert leaf(SaddleResult, ("lambda_max",), "saddle").steps == ("lambda_max", "value")


def test_fields_beside_a_number_tell_its_interval() -> None:
    result = GradientsResult(
        loss=1.0, layers=[], depth_gain=2.0, depth_gain_interval=(1.5, 3.0), gain_per_layer=None,
        gain_per_layer_interval=None, chi=1.0, chi_interval=None, trend_layers=[], activation_gain_per_layer=None,
        activation_gain_per_layer_interval=None, residual_growth=None,
        first_nonfinite=None, time=[], attention=[], noise=None, initialisations=[], rows=None,
    )  # fmt: skip
    (figure,) = figures(
        result, leaf(GradientsResult, ("depth_gain",), "gradients"), "gradients", Precision()
    )
    assert (figure.bounds, figure.basis) == ((1.5, 3.0), "interval")


@pytest.mark.parametrize(
    ("rule", "complete", "verdict", "decision"),
    [
        ('saddle.verdict != "strict-saddle"', True, "flat-minimum", "pass"),
        ('saddle.verdict != "strict-saddle"', True, "inconclusive", "undecided"),
        ('saddle.verdict == "inconclusive"', True, "inconclusive", "pass"),
        ('saddle.verdict != "strict-saddle"', False, "flat-minimum", "undecided"),
        ("saddle.findings.errors == 0", False, "flat-minimum", "undecided"),
        ("saddle.findings.errors == 0", True, "flat-minimum", "pass"),
    ],
)
def test_what_an_answer_leaves_open_does_not_hold(
    rule: str, complete: bool, verdict: str, decision: str
) -> None:
    """Verdicts and counts of findings of an incomplete or inconclusive answer are undecided."""
    torch.manual_seed(0)
    batch = Batch(((torch.randn(4, 2),), {}, torch.randn(4, 1)), 4)
    objective = make_objective(nn.Linear(2, 1), [batch], loss_terms("mse", {}))
    answer = analyse("saddle", Subject(objective=objective))
    whole = envelope("saddle", replace(answer.result, verdict=verdict))
    answers = {"saddle": replace(whole, complete=complete)}
    (outcome,) = decide(make_rule(rule), answers, lambda _: Precision(), lambda _: None)
    assert outcome.decision == decision


def test_an_interval_without_ends_decides_nothing_and_does_not_count() -> None:
    """Few layers give a trend with the interval [−∞, ∞]: the rule is skipped with its reason."""
    result = GradientsResult(
        loss=1.0, layers=[], depth_gain=2.0, depth_gain_interval=None, gain_per_layer=None,
        gain_per_layer_interval=None, chi=None, chi_interval=None, trend_layers=[],
        activation_gain_per_layer=None, activation_gain_per_layer_interval=None,
        residual_growth=None, first_nonfinite=None, time=[], attention=[],
        noise=None, initialisations=[], rows=None,
    )  # fmt: skip
    answer: Envelope[Any] = Envelope(
        command="gradients", version="", target=None, result=result, findings=[], notes=[],
        cost=CostInfo(0, 0, 0.0, None),
    )  # fmt: skip
    rule = make_rule("gradients.depth_gain > 1e-3")
    (outcome,) = decide(rule, {"gradients": answer}, lambda _: Precision(), lambda _: None)
    assert outcome.decision == "skipped"
    assert "cannot be decided on this network" in outcome.reason
