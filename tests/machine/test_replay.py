"""Products that are recorded and replayed are those that are computed; what cannot be recorded is computed.

The card is stood in for by a recorder of torch's operations, which replays them into the tensors of the recording, as
a CUDA graph does.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from curvcli.machine.replay import Replay, recorder
from curvcli.operators.curvature import curvature
from curvcli.operators.curvature.hessian import Hessian
from tests.conftest import MakeObjective

# Calls after which it is recorded, and one that is replayed.
_CALLS = 5


class _Graph(TorchDispatchMode):
    """The operations of a block, to be done again on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, out in self.steps:
            again = func(*args, **kwargs)
            given = {_place(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
            for old, new in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True):
                # What lies in a tensor that was given is a view of it, or was written there.
                if isinstance(old, Tensor) and _place(old) not in given:
                    old.copy_(new)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Stream:
    def wait_stream(self, other: "_Stream") -> None:
        assert other is not self


class _Cuda:
    """What `torch.cuda` has for recording."""

    Stream, CUDAGraph = _Stream, _Graph

    def __init__(self) -> None:
        self.outside = _Stream()
        self.within: list[_Stream] = []
        self.graphs: list[_Graph] = []

    def current_stream(self) -> _Stream:
        return self.within[-1] if self.within else self.outside

    @contextlib.contextmanager
    def stream(self, stream: _Stream) -> Iterator[None]:
        self.within.append(stream)
        yield
        self.within.pop()

    @contextlib.contextmanager
    def graph(self, graph: _Graph, stream: _Stream) -> Iterator[None]:
        self.graphs.append(graph)
        self.within.append(stream)
        try:
            with torch.no_grad(), graph:
                yield
        finally:
            self.within.pop()


def test_products_are_replayed(make_objective: MakeObjective, monkeypatch: Any) -> None:
    """On kept graphs of two batches, to the bit, with no operation of the network called again."""
    cuda = _Cuda()
    monkeypatch.setattr(curvature, "recorder", lambda device: cuda)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 3)).double()
    x, y = torch.randn(9, 5).double(), torch.arange(9) % 3
    recorded = Hessian(make_objective(model, x, y, splits=[4, 5]), strategy="keep")
    monkeypatch.undo()
    computed = Hessian(make_objective(model, x, y, splits=[4, 5]), strategy="keep")
    for _ in range(_CALLS):
        v_N = torch.randn(recorded.n).double()
        assert torch.equal(recorded.matvec(v_N), computed.matvec(v_N))
    assert sum(graph.replays for graph in cuda.graphs) >= 2
    recorded.release()
    v_N = torch.randn(recorded.n).double()
    assert torch.equal(recorded.matvec(v_N), computed.matvec(v_N))


@pytest.mark.parametrize("kind", ["refused", "wrong"])
def test_a_recording_that_fails_is_dropped(kind: str) -> None:
    """With a note, and the right products."""
    notes: list[str] = []
    cuda = _Cuda()

    def compute(v_N: Tensor) -> Tensor:
        if cuda.within and kind == "refused":
            raise RuntimeError("operation not permitted when stream is capturing")
        return v_N * (3 if cuda.within else 2)

    replay = Replay(cuda, notes.append)
    for _ in range(_CALLS):
        v_N = torch.randn(4)
        assert torch.equal(replay(compute, v_N), 2 * v_N)
    assert len(notes) == 1
    assert "not recorded" in notes[0]


def test_nothing_is_recorded_unless_asked(monkeypatch: Any) -> None:
    """And never on the CPU."""
    cards = {"": None, "1": torch.cuda}
    for asked, expected in cards.items():
        monkeypatch.setenv("CURVCLI_CUDA_GRAPHS", asked)
        assert recorder(torch.device("cuda")) is expected
        assert recorder(torch.device("cpu")) is None
