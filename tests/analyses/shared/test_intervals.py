"""Intervals hold the truth as often as they say, for networks of many kinds, states and losses, in both precisions."""

import pytest
from scipy import stats

from tests.oracles.intervals import QUESTIONS, tally
from tests.oracles.tally import Tally

# Intervals that are certain, or hold with probability 0.999; the others are of 95 %.
_SAMPLED = ("probes: ", "of the population")


def check(found: Tally) -> None:
    """No more misses than the nominal share gives once in ten thousand such tests."""
    for kind, tried in found.tried.items():
        share = 0.05 if any(word in kind for word in _SAMPLED) else 0.002
        allowed = stats.binom.ppf(1 - 1e-4, tried, share)
        assert found.missed[kind] <= allowed, (kind, tried, found.which[kind])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("question", QUESTIONS)
def test_intervals_of_a_few_networks(question: str) -> None:
    # The oracles of the last four take their time: thousands of samples, or many losses.
    few = 2 if question in ("step", "lr", "gradients", "compare") else 5
    check(tally(range(few), [question]))


@pytest.mark.full
@pytest.mark.timeout(3000)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("question", QUESTIONS)
def test_intervals_of_three_hundred_networks(question: str) -> None:
    check(tally(range(300), [question]))
