"""`track` over time: the run that died, ranks that fall, λ_max at the limit, the noise scale."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.spectrum.eigenpairs import Reach
from curvcli.analyses.track.development import development
from curvcli.analyses.track.headline import headline
from curvcli.analyses.track.health import noise_scale
from curvcli.analyses.track.result import TrackedValue, TrackPoint, TrackResult
from curvcli.operators.signals.ranks import effective_rank, feature_rank
from curvcli.report.data import ErrorInfo, Finding
from tests.conftest import MakeObjective


def found(series: list[dict[str, Any]], batch: int | None = None) -> dict[str, str]:
    """Messages by rule for a series of points with these fields."""
    journal = Journal()
    points = [
        TrackPoint(step=100 * i, checkpoint=f"{i}.pt", **fields) for i, fields in enumerate(series)
    ]
    development(journal, points, batch)
    return {f.rule.removeprefix("track."): f.message for f in journal.findings}


FRESH = {"loss": 1.1, "at_chance": True, "dead_fraction": 0.0}
GOOD = {"loss": 0.2, "dead_fraction": 0.1, "learning_rate": 0.5}


def test_a_run_that_died_is_told_in_one_sentence() -> None:
    """Between which checkpoints, at which rate, by what; fresh weights at chance are no death."""
    dead = {"loss": 1.0986, "at_chance": True, "dead_fraction": 0.9}
    told = found([FRESH, GOOD, dead, dead])
    assert told.keys() == {"run-died"}
    assert "died between step 100 and step 200 at a learning rate of 0.5" in told["run-died"]
    assert "from 0.2 to 1.099" in told["run-died"]
    assert "dead units from 10% to 90%" in told["run-died"]


def test_the_rate_that_killed_is_that_of_the_checkpoint_behind() -> None:
    """A rate that rose between two checkpoints; answers that are sure and wrong may be a matter of the data."""
    dead = {"loss": 1.0986, "at_chance": True, "dead_fraction": 0.9, "learning_rate": 3.0}
    assert "(learning rate 0.5, then 3)" in found([FRESH, GOOD, dead])["run-died"]
    wrong = {"loss": 9.0, "at_chance": True, "wrong": True}
    told = found([FRESH, {"loss": 0.2}, wrong])["run-died"]
    assert "labels or inputs here are not those of training; else go back" in told


def test_a_run_that_stands_still_is_a_finding() -> None:
    """All parameters, since the first of the checkpoints that are alike; with the rate."""
    moving, still = {"moved": {"w": 0.1, "b": 0.1}}, {"moved": {"w": 0.0, "b": 0.0}}
    end = {**GOOD, **still, "learning_rate": 0.0}
    told = found([GOOD, {**GOOD, **moving}, {**GOOD, **still}, end])["stopped"]
    assert "no parameter has moved from step 100 to step 300 (the learning rate there is 0)" in told
    assert "stopped" not in found([GOOD, {**GOOD, **still}, {**GOOD, **moving}])


def test_a_run_may_die_before_it_learns_or_by_nan() -> None:
    """Units that die at once; weights that are NaN from a checkpoint on."""
    dead = {"loss": 1.2, "at_chance": True, "dead_fraction": 0.6}
    assert "between step 0 and step 100" in found([FRESH, dead])["run-died"]
    off = {**dead, "statistics": 1e6}
    told = found([FRESH, GOOD, off])["run-died"]
    assert "running statistics" in told
    assert "lower rate" not in told
    nan = {"error": ErrorInfo("non-finite", "weights contain NaN", None, 2)}
    assert "not finite any more" in found([FRESH, GOOD, nan])["run-died"]


@pytest.mark.parametrize(
    "series",
    [[FRESH, GOOD], [FRESH, FRESH], [FRESH, {**GOOD, "loss": 1.2, "at_chance": True}, GOOD]],
)
def test_what_lives_is_not_called_dead(series: list[dict[str, Any]]) -> None:
    """A healthy run, one that has not begun to learn, and one that came back."""
    assert "run-died" not in found(series)


def test_how_long_the_limit_was_reached_is_said() -> None:
    """Three of four checkpoints at the limit are long, two are not."""
    edges = ["below", "at", "above", "at"]
    series = [{**GOOD, "edge": e, "sharpness_ratio": 1 + i / 10} for i, e in enumerate(edges)]
    told = found(series)["edge-long"]
    assert "from step 100 to step 300, for 3 of 4 checkpoints, up to 1.3 times" in told
    assert "edge-long" not in found(series[:3])


def test_a_rank_that_halves_is_a_finding() -> None:
    """Of the features or of a layer's weights, the worst first."""
    ranks = [(8.0, 9.0), (9.0, 9.0), (4.0, 4.6)]
    series = [{**GOOD, "feature_rank": f, "weight_rank": {"fc": w}} for f, w in ranks]
    assert "the features fell from 9 at step 100 to 4 at step 200" in found(series)["rank-falls"]
    assert "rank-falls" not in found(series[:2])
    fresh = {**FRESH, "feature_rank": 45.0}
    assert "rank-falls" not in found([fresh, *series[:2]]), "fresh features are of no use"


def test_data_of_another_scale_is_named_before_training_is_blamed() -> None:
    """Once for all runs; what follows from it asks for the data to be mended, not for a lower rate."""
    odd: dict[str, Any] = {**GOOD, "suspicions": ["the RMS of input 0 is 219"]}
    series = [{**odd, "feature_rank": 9.0}, {**odd, "feature_rank": 2.0, "loss": 3.0}]
    told = found(series)
    assert told["suspicious"] == "the RMS of input 0 is 219: 'curvcli gradients' says more"
    for rule in ("rank-falls", "loss-rises"):
        assert "mend inputs and outputs first" in told[rule]
        assert "learning rate" not in told[rule]
    journal, runs = Journal(), ("one", "one", "two", "two")
    development(
        journal,
        [TrackPoint(step=i, checkpoint=f"{i}", run=r, **odd) for i, r in enumerate(runs)],
        None,
    )
    assert [f.rule for f in journal.findings] == ["track.suspicious"]


def test_the_batch_is_held_against_the_noise_scale() -> None:
    """Ten times above, ten times below, and between."""
    series = [{**GOOD, "noise_scale": 640.0, "noise_scale_error": 50.0}]
    assert (
        "640 ± 50 samples, the batch 32: steps are mostly noise" in found(series, 32)["noise-scale"]
    )
    assert "larger than pays" in found(series, 8000)["noise-scale"]
    assert "noise-scale" not in found(series, 256)
    assert "noise-scale" not in found(series)


def test_effective_rank_by_its_closed_form() -> None:
    """k equal singular values have rank k; for (3, 1) it is exp(H(3/4, 1/4)); of zero there is none."""
    orthogonal = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    scaled = orthogonal[:, :2] @ torch.diag(torch.tensor([3.0, 1.0]).double())
    assert effective_rank(orthogonal[:, :4]) == pytest.approx(4)
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert effective_rank(scaled) == pytest.approx(expected)
    assert effective_rank(torch.zeros(3, 3)) is None


def test_features_of_a_rank_that_is_known(make_objective: MakeObjective) -> None:
    """Features that all lie on one line have rank one, over several batches too."""
    model = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 8), nn.Linear(8, 3))
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    objective = make_objective(model, x, y, splits=[20, 10])
    assert feature_rank(objective) == pytest.approx(1, rel=1e-5)


def test_the_noise_scale_of_a_linear_model(make_objective: MakeObjective) -> None:
    """Against tr Σ / |G|² of the samples' own gradients, within four of its standard errors."""
    torch.manual_seed(1)
    model = nn.Linear(5, 1).double()
    x = torch.randn(4000, 5, dtype=torch.float64) + 0.3
    y = torch.randn(4000, 1, dtype=torch.float64)
    gradients = 2 * (model(x) - y).detach() * torch.cat([x, torch.ones(4000, 1).double()], 1)
    mean = gradients.mean(0)
    truth = float(gradients.var(0).sum() / mean.square().sum())
    value, error = noise_scale(make_objective(model, x, y, "mse", splits=[500] * 8), None)
    assert value is not None
    assert error is not None
    assert abs(value - truth) < 4 * error


def test_the_peak_of_the_sharpness_is_in_the_first_line() -> None:
    """Beyond both ends and their reach; alone, and behind a warning; a run without one says nothing of it."""

    def point(step: int, sharpness: float, run: str | None = None) -> TrackPoint:
        value = TrackedValue(sharpness, 0.01, True)
        return TrackPoint(
            step=step, checkpoint=f"{step}.pt", loss=1 / (step + 1), lambda_max=value, run=run,
            reach=Reach(-1.0, sharpness + 0.1, 0.999),
        )  # fmt: skip

    def told(series: list[float], *warnings: Finding, others: Sequence[float] = ()) -> str:
        points = [point(i, value, "one" if others else None) for i, value in enumerate(series)]
        points += [point(i, value, "two") for i, value in enumerate(others)]
        result = TrackResult(points=points, learning_rate=None, edge=None, failed=0)
        return headline(Answer(result, list(warnings), [], True)).sentence

    assert told([1.0, 5.0, 2.0]).endswith("from 1.00 to 2.00, with a peak of 5.00 at step 1.")
    warning = Finding("track.stopped", "warning", "w", None, None, "w stands still")
    assert told([1.0, 5.0, 2.0], warning).endswith("Sharpness peaks at 5.00 at step 1.")
    assert "peak" not in told([1.0, 2.05, 2.0])
    both = told([1.0, 3.0], others=[2.0, 8.0, 4.0])
    assert "one: from step 0 to step 1 the loss goes from 1.00 to 0.500" in both
    assert "the sharpness from 2.00 to 4.00, with a peak of 8.00 at step 1" in both
