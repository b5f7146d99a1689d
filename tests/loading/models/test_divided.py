"""Networks that are to be divided are built without their weights, unless they look at them."""

from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from curvcli.linalg.ranks import ALONE
from curvcli.loading.checkpoints.formats import open_checkpoint
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
