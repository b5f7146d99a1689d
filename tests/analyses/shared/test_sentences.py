"""No sentence prints a figure that its interval contradicts: truths drawn from the intervals never do.

The figures are read out of the sentences again and held against the truths; rounding is part of what is tested.
"""

import functools
import random
import re
from typing import Any

import msgspec
import pytest

from curvcli.analyses.registry import get
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.spectrum.eigenpairs import rate_sentence
from curvcli.report.numbers import about, agreed, at_least, at_most
from tests.report.screens import recorded

NUMBER = r"(-?\d+(?:\.\d+)?(?:e[-+]\d+)?)"
SEEDS = range(200)


def figure(pattern: str, sentence: str) -> float | None:
    """The number in the place of ``#``."""
    found = re.search(pattern.replace("#", NUMBER), sentence)
    return None if found is None else float(found[1])


def resolution(sentence: str, value: float) -> float:
    """Half a unit of the last digit of that number as it is written."""
    written = next(w for w in re.findall(NUMBER, sentence) if float(w) == value)
    mantissa, _, exponent = written.partition("e")
    decimals = len(mantissa.partition(".")[2])
    return 0.5 * 10.0 ** (int(exponent or 0) - decimals)


@functools.cache
def kept(name: str) -> Any:
    return recorded(name)


def told(command: str, answer: Any, result: Any) -> str:
    headline = get(command).headline(Answer(result, [], [], complete=answer.complete))
    return headline.sentence


def test_rounding_goes_the_safe_way() -> None:
    """Read back, a lower end is never above the value, an upper end never below, by less than a unit of its digits."""
    for seed in SEEDS:
        draw = random.Random(seed)
        value = draw.choice([-1, 1]) * 10 ** draw.uniform(-8, 8)
        low, high = float(at_least(value, 3)), float(at_most(value, 3))
        assert low <= value <= high
        assert high - low <= 0.0101 * abs(value)
        both = agreed(value, value * (1 + 10 ** draw.uniform(-9, -1)))
        assert both is None or abs(float(both) / value - 1) <= 0.06
    assert agreed(1.0, 2.0) is None


@pytest.mark.parametrize("seed", SEEDS)
def test_learning_rates(seed: int) -> None:
    """For every λ between both ends: stable below 2/λ, unstable above."""
    draw = random.Random(seed)
    low = draw.choice([-1, 1, 1, 1]) * 10 ** draw.uniform(-5, 5)
    high = low + abs(low) * 10 ** draw.uniform(-8, 1)
    sentence = rate_sentence(low, high, 0.999)
    if sentence is None:
        assert high <= 0
        return
    for _ in range(20):
        truth = draw.choice([low, high, draw.uniform(low, high)])
        if truth <= 0:
            continue
        limit = 2 / truth
        stable = figure("stable for learning rates below #", sentence) or figure(
            "stable below #", sentence
        )
        assert stable is not None
        assert stable <= limit * (1 + 1e-12)
        unstable = figure("unstable for learning rates above #", sentence)
        assert unstable is None or unstable >= limit * (1 - 1e-12)
        exact = figure("λ = #", sentence)
        if exact is not None:
            assert abs(exact - truth) <= resolution(sentence, exact) * (1 + 1e-9)
        from_, to = figure("λ between #", sentence), figure("and # *: gradient", sentence)
        if from_ is not None and to is not None:
            assert from_ <= truth <= to


@pytest.mark.parametrize("seed", SEEDS)
def test_hessian(seed: int) -> None:
    """The lowest eigenvalue and what may lie below it, wherever within their intervals they are."""
    draw = random.Random(seed)
    answer: Any = kept("hessian-digits_mlp")
    scale = 10 ** draw.uniform(-4, 4)
    lowest = draw.uniform(-1, 0.2) * scale
    pair = msgspec.structs.replace(
        answer.result.bottom[0], value=lowest, residual=abs(lowest) * 10 ** draw.uniform(-7, 0.3)
    )
    reach = msgspec.structs.replace(
        answer.result.reach, lower=pair.value - pair.residual - scale * 10 ** draw.uniform(-6, 0)
    )
    result = msgspec.structs.replace(
        answer.result, bottom=[pair], top=answer.result.top, reach=reach
    )
    sentence = told("hessian", answer, result)
    truth = draw.uniform(pair.value - pair.residual, pair.value + pair.residual)
    at_worst = figure(r"λ of at most #", sentence)
    assert at_worst is None or truth <= at_worst
    if "No direction curves downwards" in sentence:
        assert reach.lower >= 0
    excluded = figure(r"λ down to #", sentence)
    assert excluded is None or excluded <= reach.lower


@pytest.mark.parametrize("seed", SEEDS)
def test_density(seed: int) -> None:
    """Shares of flat and negative directions, wherever the moments allow them to be."""
    draw = random.Random(seed)
    answer: Any = kept("density-mlp")
    ends = sorted(draw.choice([0.0, 1.0, draw.random(), 10 ** draw.uniform(-6, 0)]) for _ in "ab")
    middle = draw.uniform(*ends)
    share = msgspec.structs.replace(answer.result.mass_at_zero, value=middle, interval=tuple(ends))
    sentence = told("density", answer, msgspec.structs.replace(answer.result, mass_at_zero=share))
    said = re.search(r"directions (.*?) are flat", sentence)
    assert said is not None
    for truth in (*ends, draw.uniform(*ends)):
        percent = 100 * truth
        if said[1] == "none":
            assert percent == 0
        elif said[1].startswith("less than"):
            most = figure("less than # %", said[1])
            assert most is not None
            assert percent <= most
        else:
            span = re.search(r"(\d+) to (\d+) %", said[1])
            if span:
                assert int(span[1]) <= percent <= int(span[2])
            elif said[1].startswith("an estimated"):
                least, most = figure("at least # %", said[1]), figure("at most # %", said[1])
                assert least is None or 1 <= least <= percent
                assert most is None or percent <= most <= 90
                assert (least is None and most is None) == ("a rough figure" in said[1])
            else:
                assert f"{percent:.0f} %" == said[1]


@pytest.mark.parametrize("seed", range(50))
def test_saddle(seed: int) -> None:
    """A Newton step promises no more than is said."""
    draw = random.Random(seed)
    answer: Any = kept("saddle-digits_mlp")
    promise = 10 ** draw.uniform(-6, 0)
    result = msgspec.structs.replace(
        answer.result, verdict="not-stationary", newton_promise=promise
    )
    said = figure("promises up to # %", told("saddle", answer, result))
    assert said is None or 100 * promise <= said * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(50))
def test_depth(seed: int) -> None:
    """How the gradient changes over the depth: the safe end of its interval, or that it is not known."""
    draw = random.Random(seed)
    answer: Any = kept("gradients-bytes_gpt")
    low, high = sorted(10 ** draw.uniform(-5, 5) for _ in "ab")
    gain = draw.uniform(low, high)
    ends = draw.choice([None, (low, high), (gain / 1.2, gain * 1.1)])
    result = msgspec.structs.replace(answer.result, depth_gain=gain, depth_gain_interval=ends)
    sentence = told("gradients", answer, result).replace(",", "")
    grows = figure("grows (?:about|at least) # times", sentence)
    shrinks = figure("shrinks to (?:about|at most) # times", sentence)
    within = figure("within a factor of #", sentence)
    for truth in ends or (gain,):
        if grows is not None:
            assert grows <= truth * (1 + (0.051 if ends is None else 0))
        elif shrinks is not None:
            assert truth <= shrinks * (1 + (0.051 if ends is None else 0))
        elif within is not None:
            assert max(truth, 1 / truth) <= within <= 2.1
    if ends is not None and "cannot be told" in sentence:
        assert ends[0] <= 1 <= ends[1]


def test_ratios_have_no_more_digits_than_they_are_known_to() -> None:
    """Three digits tell: the others are zeros."""
    for seed in SEEDS:
        value = 10 ** random.Random(seed).uniform(-8, 8)
        written = about(value).replace(",", "")
        assert len(written.partition("e")[0].replace(".", "").strip("0")) <= 3
        assert abs(float(written) / value - 1) <= 0.0051
