"""Networks that keep state between calls: each call starts from what was given, and the state is named."""

import copy
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import curvcli
from curvcli import Batch, Subject, analyse, make_objective
from curvcli.loading.loss import as_terms, loss_terms
from curvcli.objective.objective import Objective
from tests.objective.test_kinds import largest


class Memory(nn.Module):
    h: Tensor | None = None
    cache: "Cache | None" = None


class Recurrent(nn.Module):
    """Its hidden state is an attribute that the last call left."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inner = Memory()
        self.cell, self.last = nn.GRUCell(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        h = self.inner.h if self.inner.h is not None else x.new_zeros(len(x), 4)
        self.inner.h = self.cell(x, h)
        return self.last(self.inner.h)


class Counter(Recurrent):
    """A buffer counts the calls, and the output grows with it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Any:
        out = self.last(self.cell(x)) * self.get_buffer("calls")
        self.calls = self.get_buffer("calls") + 1
        return out


class Appearing(Recurrent):
    """Its state is an attribute that is not there before the first call."""

    def forward(self, x: Tensor) -> Any:
        self.seen = [*getattr(self, "seen", []), x.sum()]
        return self.last(self.cell(x)) + len(self.seen)


class Cache:
    """An object of somebody's own, with a back reference that is no value."""

    def __init__(self, owner: nn.Module) -> None:
        self.owner, self.layers = owner, [Layer()]


class Layer:
    h: Tensor | None = None
    seen: deque[float]

    def __init__(self) -> None:
        self.seen = deque(maxlen=2)


class Shared(Recurrent):
    """Two modules share an object that holds the state."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = Cache(self)
        self.inner.cache = self.cache

    def forward(self, x: Tensor) -> Any:
        layer = self.cache.layers[0]
        h = layer.h if layer.h is not None else x.new_zeros(len(x), 4)
        layer.h = self.cell(x, h)
        layer.seen.append(1.0)
        assert self.inner.cache is self.cache
        return self.last(layer.h) + len(layer.seen)


class Replaced(Recurrent):
    """Each call makes the object that holds the state anew."""

    cache: Cache | None = None

    def forward(self, x: Tensor) -> Any:
        h = self.cache.layers[0].h if self.cache is not None else x.new_zeros(len(x), 4)
        self.cache = Cache(self)
        self.cache.layers[0].h = self.cell(x, h)
        return self.last(self.cache.layers[0].h)


class Remembering(Recurrent):
    """What it keeps is the same after each call: a cache, and a record of what was computed."""

    mask: Tensor | None = None

    def forward(self, x: Tensor) -> Any:
        if self.mask is None:
            self.mask = torch.ones(3)
        self.activation = self.cell(x * self.mask)
        return self.last(self.activation)


def objective_of(model: nn.Module, cut: bool, named: bool) -> tuple[Objective, Any]:
    torch.manual_seed(0)
    data = torch.randn(12, 3), torch.randint(0, 2, (12,))
    sizes = (4, 8) if cut else (12,)
    pieces = zip(*(part.split(sizes) for part in data), strict=True)
    if named:
        batches = [Batch(((x,), {}, y), len(x)) for x, y in pieces]
        return make_objective(model, batches, loss_terms("cross_entropy", {})), data

    def terms(m: nn.Module, d: Any) -> tuple[Tensor, float]:
        return as_terms(F.cross_entropy(m(d[0]), d[1]), len(d[0]), "own")

    return make_objective(model, [Batch(p, len(p[0])) for p in pieces], terms), data


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Recurrent, "inner.h"),
        (Counter, "Counter.calls"),
        (Appearing, "Appearing.seen"),
        (Shared, "inner.cache"),
        (Replaced, "Replaced.cache"),
    ],
)
def test_each_call_starts_from_the_state_that_was_given(
    kind: type[nn.Module], name: str, cut: bool, named: bool
) -> None:
    """Loss and λ_max are those of a fresh copy on all samples, whether the data is one batch or two."""
    model = kind()
    objective, data = objective_of(model, cut, named)
    fresh = kind()
    assert objective.loss == pytest.approx(
        F.cross_entropy(fresh(data[0]), data[1]).item(), rel=1e-6
    )

    def loss(m: nn.Module, d: Any) -> Tensor:
        return F.cross_entropy(m(d[0].double()), d[1])

    answer = analyse("hessian", Subject(objective=objective), top=1, bottom=0)
    pair = answer.result.top[0]
    # The residual bounds the distance to an eigenvalue, rounding of float32 included.
    assert abs(pair.value - largest(kind(), loss, data)) <= pair.residual + 1e-6 * pair.value
    assert any(f"'{name}' change" in note for note in answer.notes)
    # The network is left as it came.
    assert model(data[0]).equal(kind()(data[0]))


def test_what_stays_the_same_is_no_state() -> None:
    objective, _ = objective_of(Remembering(), True, True)
    assert not any("from call to call" in note for note in objective.notes)


def test_statistics_of_a_batch_are_no_state() -> None:
    """BatchNorm counts its calls in training mode, and reads none of what it writes."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    batch = Batch(((torch.randn(6, 3),), {}, torch.randint(0, 4, (6,))), 6)
    before = copy.deepcopy(model.state_dict())
    objective = make_objective(model, [batch], loss_terms("cross_entropy", {}), train_mode=True)
    assert not any("from call to call" in note for note in objective.notes)
    assert all(before[n].equal(t) for n, t in model.state_dict().items())


@pytest.mark.parametrize("question", ["gradients", "backprop", "trace", "taylor", "step", "lr"])
def test_every_question_takes_a_network_with_state(question: str) -> None:
    objective, _ = objective_of(Recurrent(), True, True)
    answer = analyse(question, Subject(objective=objective))
    assert not [f for f in answer.findings if f.severity == "error"]


def test_jacobians_of_a_network_with_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of each sample's Jacobian by torch.autograd.functional, of a fresh network each."""
    monkeypatch.chdir(tmp_path)
    Path("kept.py").write_text(
        "from tests.objective.test_state import Recurrent\n"
        "import torch\n"
        "torch.manual_seed(0)\n"
        "x = torch.randn(5, 3)\n"
        "batches = [(x[:2],), (x[2:],)]\n"
    )
    subject = curvcli.load(model="kept.py:Recurrent", data="kept.py:batches")
    samples = analyse("jacobian", subject).result.samples
    torch.manual_seed(0)
    for row, found in zip(torch.randn(5, 3), samples, strict=True):
        matrix = torch.autograd.functional.jacobian(Recurrent(), row[None])
        assert found.frobenius == pytest.approx(float(torch.linalg.norm(matrix)), rel=1e-5)


class Frozen(dict[str, Any]):
    """A configuration that refuses to be changed, as that of diffusers does."""

    def update(self, *_: Any, **__: Any) -> None:
        raise TypeError("it is frozen")


class Numbered(list[int]):
    """A list that is made otherwise than lists are."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__(range(first, last))


def test_containers_that_cannot_be_copied_are_no_state() -> None:
    """What is beside them is still seen."""
    model: Any = Recurrent()
    model.config, model.numbers = Frozen(width=4), Numbered(0, 3)
    objective, _ = objective_of(model, cut=False, named=True)
    assert any("inner.h" in note for note in objective.notes)
    assert model.config == {"width": 4}
    assert model.numbers == [0, 1, 2]
