"""`Monitor`: figures that dense algebra has too, a training that goes on as without it, and its share of the time."""

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import curvcli
from curvcli.errors import UsageError
from curvcli.training.micro import MicroBatches
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
        before = everything(model, optimizer)
        monitor.micro_batch(16)
        monitor.step()
        assert same(before, everything(model, optimizer))
        assert all(m.problem is None for m in monitor.history)
        assert len(monitor.history) == monitor.steps // 3

    return after


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_measures_where_nothing_is_differentiated(mode: Callable[[], Any]) -> None:
    """In a block of evaluation; gradients are off afterwards as before."""
    monitor = Monitor(small(), "cross_entropy", data=(X50, Y50), every=1, budget=None)
    with mode():
        monitor.step()
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() is (mode is torch.inference_mode)
    assert monitor.history[0].problem is None
    assert monitor.history[0].figures["hessian.top[0].value"] > 0


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
        monitor = Monitor(DistributedDataParallel(network()), "cross_entropy", data=(X, Y))
        assert "plasticity.weight_rank.0" in monitor.measure().figures  # not of module.0
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
    with torch.no_grad():
        model[0].get_parameter("weight_orig").mul_(
            2
        )  # pruning's hook computes the weight from it at the next call
    model[0].register_forward_hook(lambda *_: seen.append(1))
    monitor = Monitor(model, "cross_entropy", data=(X50, Y50), every=1, budget=None)
    monitor.step()
    assert monitor.history[0].problem is None
    assert not seen
    expected = F.cross_entropy(model(X50), Y50).item()
    # float32 sums of 50 losses in another order
    assert monitor.history[0].figures["hessian.loss"] == pytest.approx(expected, rel=1e-5)


def test_hooks_on_all_modules_do_not_see_the_probe_and_stay() -> None:
    """Those of `register_module_forward_hook`; with ``hooks=True`` they are called."""
    seen, model = list[int](), network()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    try:
        for hooks in (False, True):
            monitor = Monitor(
                model, "cross_entropy", data=(X, Y), every=1, budget=None, analyses=["gradients"],
                hooks=hooks,
            )  # fmt: skip
            monitor.step()
            assert monitor.history[0].problem is None
            assert bool(seen) is hooks
        seen.clear()
        model(X)
        assert seen
    finally:
        handle.remove()


@pytest.mark.parametrize("where", ["loader", "sampler", "batch sampler"])
def test_a_loader_goes_on_with_the_order_it_had(where: str) -> None:
    """The loader of the training is the probe's too, and draws from a generator of its own."""

    def order(is_watched: bool) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        dataset = TensorDataset(X, Y)
        sampler = RandomSampler(dataset, generator=generator)
        loader = {
            "loader": DataLoader(dataset, 16, shuffle=True, generator=generator),
            "sampler": DataLoader(dataset, 16, sampler=sampler),
            "batch sampler": DataLoader(dataset, batch_sampler=BatchSampler(sampler, 16, False)),
        }[where]
        if is_watched:
            Monitor(network(), "cross_entropy", data=loader)
        return [rows for rows, _ in loader]

    assert same(order(False), order(True))


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


def test_what_trackers_and_micro_batches_take_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 s for a tracker, 2 s for each of two micro-batches, where the budget has time for a measurement at all."""
    clock = Clock()

    class Slow:
        def log(self, step: int, figures: Mapping[str, float]) -> None:
            clock.now += 3.0

        def close(self) -> None:
            pass

    model = small()
    monitor = Monitor(
        model, "cross_entropy", data=(X50, Y50), every=1, budget="50%", clock=clock, analyses=["gradients"],
        log=Slow(),
    )  # fmt: skip
    add = MicroBatches.add

    def slow(*given: Any) -> None:
        clock.now += 2.0
        add(*given)

    monkeypatch.setattr(MicroBatches, "add", slow)
    for _ in range(2):
        for _ in range(2):
            model.zero_grad()
            F.cross_entropy(model(X50), Y50).backward()
            monitor.micro_batch(50)
        monitor.step()
    assert (len(monitor.history), monitor.skipped) == (1, 1)
    assert clock.now == 7.0
    assert monitor.share == 1.0


def test_a_tracker_that_fails_does_not_end_the_run() -> None:
    """It is told once, and the others have their figures."""

    class Away:
        def log(self, step: int, figures: Mapping[str, float]) -> None:
            raise ConnectionError("no route")

        def close(self) -> None:
            raise ConnectionError("no route")

    class Kept:
        def __init__(self) -> None:
            self.steps = list[int]()

        def log(self, step: int, figures: Mapping[str, float]) -> None:
            self.steps.append(step)

        def close(self) -> None:
            self.steps.append(-1)

    kept = Kept()
    monitor = Monitor(
        small(), "cross_entropy", data=(X50, Y50), every=1, budget=None, analyses=["gradients"],
        log=[Away(), kept],
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            monitor.step()
        monitor.close()
    (warning,) = told
    assert warning.category is MonitorWarning
    assert str(warning.message) == "step 1: Away took no figures: ConnectionError: no route"
    assert warning.filename == __file__
    assert kept.steps == [1, 2, -1]


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


def test_it_goes_on_where_a_residual_leaves_a_doubt() -> None:
    """Thresholds within the residual of λ, and outside of it."""
    options = {"hessian": {"tol": 0.5, "bottom": 0}}

    def measured(stop_if: str | None) -> Monitor:
        monitor = Monitor(
            small(), "cross_entropy", data=(X50, Y50), every=1, budget=None, analyses=["hessian"],
            options=options, stop_if=stop_if,
        )  # fmt: skip
        monitor.step()
        return monitor

    figures = measured(None).history[0].figures
    value, residual = (figures[f"hessian.top[0].{name}"] for name in ("value", "residual"))
    assert residual > 0.001 * value
    for threshold, stops in ((value - residual / 2, False), (value - 2 * residual, True)):
        assert measured(f"hessian.top[0].value > {threshold}").should_stop is stops


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
