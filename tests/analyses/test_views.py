"""Words in tables: nothing uncertain as a fact, no row without a figure, no head that says another thing."""

from typing import Any

import msgspec

from curvcli.analyses.gradients.view import _percent
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
