"""`Monitor`: figures that dense algebra has too, a training that goes on as without it, and its share of the time."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

import curvcli
from curvcli.errors import UsageError
from curvcli.training.monitor import Monitor, MonitorWarning
from tests.oracles.mixture import dense
from tests.oracles.samples import X50, Y50, small
from tests.training.loops import X, Y, everything, network, same, train


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def watched(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """A monitor that measures every third step, from a loader that shuffles."""
    loader = DataLoader(TensorDataset(X, Y), batch_size=32, shuffle=True)
    monitor = Monitor(
        model, F.cross_entropy, data=loader, every=3, budget=None, optimizer=optimizer
    )

    def after() -> None:
        monitor.micro_batch(16)
        before = everything(model, optimizer)
        monitor.step()
        assert same(before, everything(model, optimizer))
        assert all(m.problem is None for m in monitor.history)
        assert len(monitor.history) == monitor.steps // 3

    return after


@pytest.mark.parametrize("amp", [False, True])
def test_training_is_the_same_to_the_bit(amp: bool) -> None:
    """Weights, buffers, gradients, modes, moments, random states, autocast and GradScaler; every loss."""
    assert same(train(None, amp=amp), train(watched, amp=amp))


def test_a_model_in_distributed_data_parallel_is_looked_into(tmp_path: Path) -> None:
    """Its buckets and hooks are left alone: the same losses, and the same state."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        assert same(
            train(None, wrap=DistributedDataParallel), train(watched, wrap=DistributedDataParallel)
        )
    finally:
        distributed.destroy_process_group()


def _rank(rank: int, store: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = DistributedDataParallel(network())
    monitor = Monitor(
        model, "cross_entropy", data=(X, Y), every=2, budget=None, analyses=["hessian"],
        stop_if="hessian.loss > 0",
    )  # fmt: skip
    told = [monitor.step() for _ in range(2)]
    assert told == [False, True]
    assert len(monitor.history) == (rank == 0)
    distributed.destroy_process_group()


@pytest.mark.full
def test_of_several_processes_one_measures_and_all_stop(tmp_path: Path) -> None:
    """Two processes: the first one's verdict is that of both."""
    spawn(_rank, (str(tmp_path / "store"),), nprocs=2)


def test_hooks_of_others_do_not_see_the_probe_and_stay() -> None:
    """A recorder of activations has what the training has; pruning's own hook is a part of the network."""
    model, seen = small(), list[int]()
    prune.random_unstructured(model[0], "weight", 0.5)
    model[0].register_forward_hook(lambda *_: seen.append(1))
    monitor = Monitor(model, "cross_entropy", data=(X50, Y50), every=1, budget=None)
    monitor.step()
    assert monitor.history[0].problem is None
    assert not seen
    expected = F.cross_entropy(model(X50), Y50).item()
    # float32 sums of 50 losses in another order
    assert monitor.history[0].figures["hessian.loss"] == pytest.approx(expected, rel=1e-5)


def test_the_figures_are_those_of_dense_algebra_and_later_ones_start_from_earlier() -> None:
    """λ_max and λ_min within their residuals; fewer products than from a random vector."""
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(
        model, "cross_entropy", data=(X50, Y50), every=1, budget=None, analyses=["hessian"], dtype="float64",
        optimizer=optimizer,
    )  # fmt: skip
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(X50), Y50).backward()
        optimizer.step()
        monitor.step()
        exact = copy.deepcopy(model).double()
        values = torch.linalg.eigvalsh(
            dense(F.cross_entropy(exact(X50.double()), Y50), list(exact.parameters()))
        )
        figures = monitor.history[-1].figures
        for name, truth in (("top", values[-1]), ("bottom", values[0])):
            residual = figures[f"hessian.{name}[0].residual"]
            # 1e-12: rounding of the dense eigenvalues themselves
            assert abs(figures[f"hessian.{name}[0].value"] - float(truth)) <= residual + 1e-12
    assert monitor.history[-1].products < monitor.history[0].products


def test_it_stays_within_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 1 s, measurements of 10 s, 5 %: after the first one, the share holds at the end of each."""
    clock = Clock()
    model = small()
    monitor = Monitor(
        model, "cross_entropy", data=(X50, Y50), every=10, budget="5%", clock=clock, analyses=["hessian"]
    )  # fmt: skip
    ask = monitor._probe.ask

    def slow(*given: Any) -> Any:
        clock.now += 10.0
        return ask(*given)

    monkeypatch.setattr(monitor._probe, "ask", slow)
    shares = []
    for _ in range(1000):
        clock.now += 1.0
        before = len(monitor.history)
        monitor.step()
        if len(monitor.history) > before:
            shares.append(monitor.share)
    # k measurements fit when 10 k = 5 % of (steps + 10 k): after 190 k steps.
    assert [m.step for m in monitor.history] == [10, 380, 570, 760, 950]
    assert all(share <= 0.05 for share in shares[1:])
    assert len(monitor.history) + monitor.skipped == 100


def test_it_stops_when_the_condition_certainly_holds() -> None:
    """The threshold on either side of λ, as a function of the learning rate."""
    model = small()
    top = curvcli.hessian(model, "cross_entropy", (X50, Y50), top=1, bottom=0).result.top[0].value
    for factor, stops in ((0.9, False), (1.1, True)):
        optimizer = torch.optim.SGD(model.parameters(), lr=factor * 2 / top)
        monitor = Monitor(
            model, "cross_entropy", data=(X50, Y50), every=1, budget=None, optimizer=optimizer,
            analyses=["hessian"], stop_if="hessian.top[0].value > 2/lr",
        )  # fmt: skip
        assert monitor.step() is monitor.should_stop is stops
        assert monitor.history[0].holds == (("hessian.top[0].value > 2/lr",) if stops else ())


def test_a_hook_of_the_optimizer_counts_the_steps() -> None:
    """Without a line in the loop; it is removed again."""
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, "cross_entropy", data=(X50, Y50), every=2, budget=None, analyses=["hessian"])  # fmt: skip
    handle = monitor.attach(optimizer)
    for _ in range(4):
        F.cross_entropy(model(X50), Y50).backward()
        optimizer.step()
    handle.remove()
    optimizer.step()
    assert [m.step for m in monitor.history] == [2, 4]


def test_it_warns_when_a_condition_begins_to_hold() -> None:
    """Once, not at every measurement."""
    monitor = Monitor(
        small(), "cross_entropy", data=(X50, Y50), every=1, budget=None, analyses=["gradients"],
        warn_if="gradients.loss > 0",
    )  # fmt: skip
    with pytest.warns(MonitorWarning, match="step 1: gradients.loss > 0"):
        monitor.step()
    monitor.step()
    assert len(monitor.history) == 2


def test_what_cannot_be_measured_is_told_and_the_run_goes_on() -> None:
    """Weights that became NaN."""
    model = small()
    monitor = Monitor(model, "cross_entropy", data=(X50, Y50), every=1, budget=None, analyses=["hessian"])  # fmt: skip
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.warns(MonitorWarning, match="nothing was measured: weights contain NaN"):
        assert not monitor.step()
    assert not monitor.step()
    assert [m.problem is None for m in monitor.history] == [False, False]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"every": 0}, "no number of steps"),
        ({"budget": "two"}, "no share"),
        ({"analyses": ["hesian"]}, "hesian"),
        ({"analyses": ["compare"]}, "no question about a model"),
        ({"stop_if": "hessian.top[0].value > 2/lr"}, "'lr' names no field"),
        ({"stop_if": "trace.trace.value > 2"}, "not measured"),
        ({"stop_if": "hessian.loss > baseline"}, "no baseline"),
        ({"options": {"hessian": {"tip": 2}}}, "tip"),
        ({"options": {"trace": {}}}, "not measured"),
        ({"log": "tensorbord"}, "tensorboard"),
        ({"batchsize": 2}, "batchsize"),
    ],
)
def test_what_is_wrong_is_told_before_the_training(options: dict[str, Any], told: str) -> None:
    """When the monitor is made."""
    with pytest.raises(UsageError, match=told):
        Monitor(small(), "cross_entropy", data=(X50, Y50), **options)


def test_the_history_is_a_table() -> None:
    """One row a measurement, figures by their names in rules."""
    pytest.importorskip("pandas")
    monitor = Monitor(small(), "cross_entropy", data=(X50, Y50), every=1, budget=None)
    monitor.step()
    frame = monitor.to_frame()
    assert list(frame["step"]) == [1]
    assert frame["hessian.top[0].value"][0] > 0
