"""Ten ways of breaking a training: what `gradients` and `check` say of each, with the default rules."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.breakages.projects import BREAKAGES, healthy, written
from tests.oracles.program import answer


class Row(NamedTuple):
    """What must be said of a breakage."""

    cause: str
    """Finding of `gradients` that stands for it, the first one."""
    code: int
    """Exit code of `check`: 1 for what no team wants; others are named, and may be meant."""
    words: str
    """In a message of `check`."""
    others: tuple[str, ...] = ()
    """Findings besides the cause that follow from it; any other would mislead."""


_DEAD = ("chance-dead", "zero-gradient", "constant-output", "dead-units")
TABLE = {
    "rate_too_high": Row("dead-layer", 1, "a learning rate that was too high", _DEAD),
    "softmax_twice": Row("softmax-twice", 1, "drop the softmax"),
    "pixels_not_divided": Row("inputs-large", 0, "not divided by 255"),
    "pixels_divided_twice": Row("inputs-small", 0, "divided twice"),
    "shuffled_labels": Row("not-learned", 0, "labels that carry no signal"),
    "frozen_by_mistake": Row("frozen", 0, "requires_grad = False"),
    "running_statistics": Row("running-statistics", 0, "running statistics of 1 are not those"),
    "vanishing": Row("vanishing-depth", 1, "each sigmoid", ("vanishing-layer", "constant-output")),
    "not_a_number": Row("nonfinite", 1, "NaN"),
    "dead_layer": Row("dead-layer", 1, "no unit of 3 fires", _DEAD),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_gradients_names_the_cause_first_and_nothing_that_misleads(
    name: str, tmp_path: Path
) -> None:
    """The finding that stands for the cause comes first, and the others follow from it."""
    _, found = answer("gradients", written(BREAKAGES[name](), tmp_path))
    rules = [f["rule"].removeprefix("gradients.") for f in found["findings"]]
    row = TABLE[name]
    assert rules[0] == row.cause
    assert set(rules) <= {row.cause, *row.others}


@pytest.mark.parametrize("name", BREAKAGES)
def test_check_names_the_cause_with_its_default_rules(name: str, tmp_path: Path) -> None:
    """The exit code, and the cause in words: none of the ten is silent or blamed on something else."""
    code, found = answer("check", written(BREAKAGES[name](), tmp_path), "--no-cache")
    row = TABLE[name]
    said = [f["message"] for f in found["findings"]]
    assert code == row.code, said
    assert any(row.words in message for message in said), said
    verdicts = [m for m in said if "saddle.verdict" in m]
    assert all(row.words in m for m in verdicts), "a verdict comes with what explains it"


# What `track` finds first, of which its first line tells; None: weights alone do not show it.
TRACK = {
    "rate_too_high": ("run-died", "died between step 0 and step 1"),
    "softmax_twice": ("suspicious", "cross_entropy applies softmax itself"),
    "pixels_not_divided": ("suspicious", "not divided by 255"),
    "pixels_divided_twice": ("suspicious", "divided twice"),
    "shuffled_labels": (None, "the network has not learned"),
    "frozen_by_mistake": ("stopped", "0.weight"),
    "running_statistics": ("run-died", "running statistics of a BatchNorm"),
    "vanishing": ("suspicious", "the same for every sample"),
    "not_a_number": ("run-died", "not finite any more"),
    "dead_layer": ("run-died", "died between step 0 and step 1"),
    "healthy": (None, "the loss goes from"),
}


@pytest.mark.parametrize("name", TRACK)
def test_track_names_the_cause_first(name: str, tmp_path: Path) -> None:
    """Its first line and its first finding; training is not blamed for what data or outputs explain."""
    target = written({**BREAKAGES, "healthy": healthy}[name](), tmp_path)
    _, found = answer("track", target, str(tmp_path / "run"), "--probes", "0")
    rule, words = TRACK[name]
    grave = [f for f in found["findings"] if f["severity"] != "note"]
    assert [f["rule"].removeprefix("track.") for f in grave][:1] == ([rule] if rule else [])
    assert words in found["verdict"]["sentence"]
    assert found["verdict"]["level"] == {"healthy": "good"}.get(
        name, "bad" if rule == "run-died" else "attention"
    )
    if rule == "suspicious":
        assert not any("learning rate" in f["message"] for f in grave)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_the_healthy_control_is_clean(seed: int, tmp_path: Path) -> None:
    """Over 20 seeds `gradients` finds nothing, and `check` nothing graver than a note on the verdict of `saddle`."""
    target = written(healthy(seed), tmp_path)
    assert not answer("gradients", target)[1]["findings"]
    code, found = answer("check", target, "--no-cache", "--strict")
    assert code == 0
    assert all(
        f["severity"] == "note" and "saddle.verdict" in f["message"] for f in found["findings"]
    )
