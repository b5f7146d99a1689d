"""Networks that are to be divided are built without their weights, unless they look at them."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from curvcli.linalg.ranks import ALONE
from curvcli.loading.checkpoints.checkpoint import Checkpoint
from curvcli.loading.checkpoints.formats import open_checkpoint
from curvcli.loading.checkpoints.sources import TensorInfo
from curvcli.loading.models.divided import Division
from curvcli.loading.models.model import build_model
from curvcli.loading.spec import TargetSpec


class Plain(nn.Linear):
    """Looks at nothing."""

    def __init__(self) -> None:
        super().__init__(2, 2)


class Looks(Plain):
    """Needs a number from its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = float(self.weight.sum())


class Keeps(Plain):
    """Makes a buffer from its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("start", self.weight.detach().clone())


def test_weights_are_there_only_where_the_network_looks_at_them(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({n: p.detach() for n, p in Plain().named_parameters()}, path)
    checkpoint = open_checkpoint(path)
    for kind, absent in ((Plain, True), (Looks, False), (Keeps, False)):
        division = Division(TargetSpec(shard=True), ALONE, [])
        build = partial(build_model, f"{__name__}:{kind.__name__}", {})
        model = division.built(build, checkpoint)
        assert all(p.is_meta == absent for p in model.parameters())
        assert not any(b.is_meta for b in model.buffers())
    assert not torch.nn.Linear(1, 1).weight.is_meta


def test_weights_are_divided_unasked_only_where_they_must_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """θ, eight vectors and a basis of three more than the pairs: too much for one, and not for two."""
    entries, wanted = 1000, 4
    infos = [
        TensorInfo("a.w", (600,), "bfloat16", 1200),
        TensorInfo("b.w", (20, 20), "float32", 1600),
    ]
    infos.append(TensorInfo("steps", (), "int64", 8))
    checkpoint = Checkpoint(Path("x.safetensors"), "safetensors", infos, {})
    whole = 4 * entries * (1 + 8 + wanted + 3)

    def divided(left: int, wanted: int | None = wanted, ranks: Any = None, **settings: Any) -> bool:
        monkeypatch.setattr("curvcli.loading.models.divided.room", lambda _device, _limit: left)
        notes: list[str] = []
        division = Division(TargetSpec(**settings), ranks or _ranks(), notes)
        division.settle(checkpoint, torch.device("cpu"), wanted)
        assert bool(notes) == division.chosen
        return division.chosen

    assert divided(whole - 1)
    assert not divided(whole)
    assert divided(whole // 2)
    assert not divided(whole // 2 - 1)  # nor would the shares fit
    assert not divided(whole - 1, wanted=None)  # a question that needs the whole
    assert not divided(whole - 1, ranks=ALONE)
    assert divided(whole, dtype="float64")
    assert not divided(4 * entries * 9, offload="host")  # the basis is elsewhere
    assert divided(4 * entries * 9 - 1, offload="host")
    assert divided(4 * (entries + 400 * 15) - 1, params=["b.*"])
    assert not divided(4 * (entries + 400 * 15), params=["b.*"])
    # The other process has less room.
    assert divided(whole, ranks=_ranks(largest=lambda value: max(value, 1 - whole)))


def _ranks(**others: Any) -> Any:
    return SimpleNamespace(**{"size": 2, "largest": lambda value: value, **others})
