"""Words in tables: nothing uncertain as a fact, no row without a figure, no head that says another thing."""

from typing import Any

import msgspec
import pytest

from curvcli.analyses.gradients.view import _percent
from curvcli.analyses.registry import get
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.sharpness.view import view
from curvcli.analyses.track.view import _far_apart
from curvcli.report.data import Bars, Measured, Series
from curvcli.report.numbers import measured, number
from tests.report.screens import recorded, screen


def shown(name: str) -> str:
    return screen(recorded(name), 200)


def test_a_memory_within_its_error_is_not_certain() -> None:
    """The horizon follows from the exponent, and is as sure as that."""
    envelope: Any = recorded("jacobian-lstm")
    layer = envelope.result.time[0]
    for exponent, error, told in (
        (-0.1, 0.2, "10.0 steps, not certain"),
        (-0.1, 0.01, "10.0 steps\n"),
    ):
        one = msgspec.structs.replace(
            layer, lyapunov=exponent, lyapunov_error=error, memory_horizon=-1 / exponent
        )
        result = msgspec.structs.replace(envelope.result, time=[one])
        assert told in screen(msgspec.structs.replace(envelope, result=result), 200)


def test_two_kinds_of_memory_have_two_names() -> None:
    """The slowest direction of the state, and the output as a whole: figures that differ by several times."""
    gradients, jacobian = shown("gradients-digits_lstm"), shown("jacobian-lstm")
    assert "horizon" not in gradients + jacobian
    assert "to 1/e: steps until it has fallen so far" in gradients
    assert "slowest direction to 1/e" in jacobian
    assert "`gradients` has another figure" in jacobian


def test_symbols_and_terms_are_explained() -> None:
    """Where they stand, in words."""
    assert "ρ: radius of the ball" in shown("sharpness-mlp")
    assert "stationarity ρ = ‖g‖² / (2 ‖H‖ (L − L*)): the share" in shown("saddle-saddle")
    assert "participation ratio: (Σ λ)² / Σ λ², how many" in shown("trace-mlp")


def test_sharpness_has_a_picture() -> None:
    """A bar for each weight."""
    envelope: Any = recorded("sharpness-mlp")
    bars = [block for block in view(envelope.result) if isinstance(block, Bars)]
    layers = envelope.result.relative_flatness.layers
    assert [b.names for b in bars] == [[f.name for f in layers]]
    assert bars[0].groups[0].values == [f.value for f in layers]


def test_no_row_of_sharpness_folds_at_eighty_columns() -> None:
    """The interval of the quadratic model is one figure, and it stays."""
    lines = screen(recorded("sharpness-mlp"), 80).split("\n")
    assert any(line.endswith("0.033 to 0.049") for line in lines)
    assert "ρ 0.05, m 8" in "\n".join(lines)


def test_rates_above_the_bound_are_explained() -> None:
    """A range that ends above 2/λ contradicts the sentence of `hessian` unless it says why."""
    envelope: Any = recorded("lr-linear")
    result = envelope.result
    told = "edge of stability, Cohen et al. 2021"
    for highest, said in ((2 * result.bound.rate, True), (0.5 * result.bound.rate, False)):
        one = msgspec.structs.replace(result, highest=highest)
        assert (told in screen(msgspec.structs.replace(envelope, result=one), 200)) is said


@pytest.mark.parametrize(
    ("value", "error", "told"),
    [
        (26899.0, 1055.0, "26900 ± 1100"),
        (-26899.0, 105.5, "-26900 ± 110"),
        (1234.0, 12.3, "1234 ± 12"),
        (123.0, 456.0, "120 ± 460"),
        (1.5, 456.0, "1.5 ± 460"),
        (162916.0, 181178.0, "160000 ± 180000"),
        (0.5, 0.01, "0.50 ± 0.01"),
    ],
)
def test_figures_end_where_their_error_begins(value: float, error: float, told: str) -> None:
    assert measured(Measured(value, error)) == told


def test_sharpness_far_below_its_limit_is_drawn_on_a_log_axis() -> None:
    """Adam's limit is thousands of times λ: on a linear axis the curve is a line at zero."""
    steps = [0.0, 1.0]
    near, limit = Series("λ max", steps, [2.0, 9.0]), Series("limit", steps, [3e4, 3e4])
    negative = Series("λ max", steps, [2.0, 9.0], [-1.0, 8.0], [4.0, 10.0])
    assert _far_apart([near, limit])
    assert not _far_apart([near])
    assert not _far_apart([negative, limit])


def test_rows_without_a_figure_are_left_out() -> None:
    """What was not asked for, and what there is no promise of."""
    assert "saved" not in shown("step-mlp")
    assert "Newton step promises" not in shown("saddle-saddle")
    assert "] with probability 0.999" in shown("saddle-saddle")


def test_heads_say_what_stands_below() -> None:
    """Entries that are no parameters, shares, intervals, norms beside root mean squares."""
    assert "numbers      17,226" in shown("info-mlp")
    density = shown("density-mlp")
    assert "share at zero" in density
    assert "moments allow" not in density
    assert "± to the end of the interval" in shown("compare-mlp")
    assert "the gain is that of the norm" in shown("gradients-digits_lstm")
    assert "above a straight line between two others" in shown("landscape-cnn")
    assert "an output that never changes has at best loss" in shown("trace-mlp")


def test_a_small_share_is_not_zero() -> None:
    """0.0 % beside 0 says nothing."""
    assert [_percent(v) for v in (0.0, 2e-4, 0.25, None)] == ["0", "< 0.1 %", "25.0 %", None]


def test_a_model_that_is_right_nowhere_says_so() -> None:
    """A distance of 0 is none: what was looked at is named, and what may be in the way."""
    envelope: Any = recorded("taylor-mlp")
    first, *rest = envelope.result.directions
    nowhere = msgspec.structs.replace(first, trust_radius=0.0, trusted_to_the_end=False)
    result = msgspec.structs.replace(envelope.result, directions=[nowhere, *rest])
    told = get("taylor").headline(Answer(result, [], [])).sentence
    assert "distance of 0" not in told
    assert "the smallest looked at" in told
    assert "--dtype float64" in told
    text = screen(msgspec.structs.replace(envelope, result=result), 200)
    assert f"< {number(first.points[0].radius, 2)}" in text
