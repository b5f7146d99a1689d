"""Ten ways of breaking a training: what `gradients` finds, and how `check` ends with its default rules."""

from pathlib import Path

import pytest

from tests.breakages.projects import BREAKAGES, healthy, written
from tests.oracles.program import answer

# Breakage: (a finding of `gradients` that names the cause, exit code of `check`).
TABLE = {
    "rate_too_high": ("dead-layer", 1),
    "softmax_twice": ("softmax-twice", 1),
    "pixels_not_divided": ("inputs-large", None),
    "pixels_divided_twice": ("inputs-small", None),
    "shuffled_labels": ("not-learned", None),
    "frozen_by_mistake": ("frozen", None),
    "running_statistics": ("running-statistics", None),
    "vanishing": ("vanishing-depth", 1),
    "not_a_number": ("nonfinite", 1),
    "dead_layer": ("dead-layer", 1),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_gradients_names_the_cause(name: str, tmp_path: Path) -> None:
    """The finding that stands for the cause is among those of `gradients`."""
    _, found = answer("gradients", written(BREAKAGES[name](), tmp_path))
    rules = {f["rule"].removeprefix("gradients.") for f in found["findings"]}
    assert TABLE[name][0] in rules, rules


@pytest.mark.full
@pytest.mark.parametrize("name", [n for n, row in TABLE.items() if row[1] is not None])
def test_check_fails_on_what_no_team_wants(name: str, tmp_path: Path) -> None:
    """Exit code 1 with the default rules."""
    code, found = answer("check", written(BREAKAGES[name](), tmp_path), "--no-cache")
    assert code == TABLE[name][1], found["findings"]


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_the_healthy_control_is_clean(seed: int, tmp_path: Path) -> None:
    """Over 20 seeds `gradients` has no finding."""
    _, found = answer("gradients", written(healthy(seed), tmp_path))
    assert not found["findings"]
