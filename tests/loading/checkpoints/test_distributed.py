"""Directories of torch.distributed.checkpoint are read as torch reads them, and nothing in them runs."""

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from curvcli.errors import CheckpointError
from curvcli.loading.checkpoints import distributed
from curvcli.loading.checkpoints.formats import open_checkpoint
from curvcli.loading.models.model import load_weights


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def saved(folder: Path, content: dict[str, Any]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(content, checkpoint_id=folder, no_dist=True)
    return folder


def trained(folder: Path) -> nn.Sequential:
    """A network, saved with its optimizer, an average of its weights and a number."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    average = {n: t + 1 for n, t in model.state_dict().items()}
    content = {
        "model": model.state_dict(),
        "ema": average,
        "optim": optimizer.state_dict(),
        "step": 3,
    }
    saved(folder, content)
    return model


def metadata(folder: Path) -> Metadata:
    read: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    return read


def change(folder: Path, how: Callable[[Metadata], None]) -> None:
    """The index with something else in it."""
    index = metadata(folder)
    how(index)
    (folder / ".metadata").write_bytes(pickle.dumps(index))


def test_weights_beside_an_optimizer_and_an_average(tmp_path: Path) -> None:
    model = trained(tmp_path / "c")
    for key, shift in ((None, 0.0), ("ema", 1.0)):
        checkpoint = open_checkpoint(tmp_path / "c", weights=key)
        assert checkpoint.format == "torch.distributed"
        assert {t.name for t in checkpoint.tensors} == set(model.state_dict())
        found = network()
        load_weights(found, checkpoint)
        for name, tensor in model.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor + shift)


def test_a_state_dict_of_its_own_and_other_types(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "a.b": torch.arange(6).view(2, 3), "c": torch.tensor(2.5, dtype=torch.float64),
        "d": torch.randn(3, 2).bfloat16().t(), "e": torch.zeros(0, 3),
    }  # fmt: skip
    checkpoint = open_checkpoint(saved(tmp_path / "c", content))
    for name, tensor in content.items():
        assert torch.equal(checkpoint[name], tensor)
        assert checkpoint[name].dtype == tensor.dtype
    before = checkpoint.sha256()
    saved(tmp_path / "c", {**content, "c": torch.tensor(3.5, dtype=torch.float64)})
    assert open_checkpoint(tmp_path / "c").sha256() != before


def in_pieces(folder: Path) -> Tensor:
    """A tensor in four pieces, as four ranks write it; torch itself reads it."""
    whole = torch.randn(5, 4)
    blocks = {(r, c): whole[r : r + 3, c : c + 2] for r in (0, 3) for c in (0, 2)}
    saved(folder, {f"{r}{c}": block.clone() for (r, c), block in blocks.items()})

    def join(index: Metadata) -> None:
        first: Any = index.state_dict_metadata["00"]
        storage = {k.fqn: v for k, v in index.storage_data.items()}
        first.size = torch.Size((5, 4))
        first.chunks = [ChunkStorageMetadata(torch.Size(at), b.shape) for at, b in blocks.items()]
        index.state_dict_metadata = {"w": first}
        index.planner_data = {"w": ("w",)}
        index.storage_data = {
            MetadataIndex("w", torch.Size(at)): storage[f"{at[0]}{at[1]}"] for at in blocks
        }

    change(folder, join)
    return whole


def test_pieces_of_several_ranks(tmp_path: Path) -> None:
    whole = in_pieces(tmp_path / "c")
    into = {"w": torch.zeros(5, 4)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(into, checkpoint_id=tmp_path / "c", no_dist=True)
    assert torch.equal(into["w"], whole)
    assert torch.equal(open_checkpoint(tmp_path / "c")["w"], whole)


def in_rows(folder: Path) -> Tensor:
    """A tensor in three pieces of whole rows, as sharded training writes it."""
    whole = torch.randn(7, 4)
    blocks = {0: whole[:3], 3: whole[3:6], 6: whole[6:]}
    saved(folder, {str(at): block.clone() for at, block in blocks.items()})

    def join(index: Metadata) -> None:
        storage = {k.fqn: v for k, v in index.storage_data.items()}
        first: Any = index.state_dict_metadata["0"]
        first.size = torch.Size((7, 4))
        first.chunks = [
            ChunkStorageMetadata(torch.Size((at, 0)), b.shape) for at, b in blocks.items()
        ]
        index.state_dict_metadata = {"w": first}
        index.planner_data = {"w": ("w",)}
        index.storage_data = {
            MetadataIndex("w", torch.Size((at, 0))): storage[str(at)] for at in blocks
        }

    change(folder, join)
    return whole


@pytest.mark.parametrize("make", [in_pieces, in_rows])
def test_a_part_is_read_alone(make: Callable[[Path], Tensor], tmp_path: Path) -> None:
    """Any entries, flat, from whatever pieces have them."""
    whole = make(tmp_path / "c").reshape(-1)
    checkpoint = open_checkpoint(tmp_path / "c")
    for first in range(len(whole) + 1):
        for last in range(first, len(whole) + 1):
            assert torch.equal(checkpoint.part("w", first, last), whole[first:last])


def test_pieces_that_hold_nothing_of_a_part_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 3 to 5 lie in one of three pieces."""
    whole = in_rows(tmp_path / "c")
    read: list[tuple[int, ...]] = []
    usual = distributed._read

    def noted(piece: Any) -> Tensor:
        read.append(piece.offsets)
        return usual(piece)

    monkeypatch.setattr(distributed, "_read", noted)
    checkpoint = open_checkpoint(tmp_path / "c")
    assert not read, "opening reads the index alone"
    assert torch.equal(checkpoint.part("w", 13, 20), whole.reshape(-1)[13:20])
    assert read == [(3, 0)]
    with pytest.raises(CheckpointError, match="missing in the index"):
        checkpoint.part("w", 20, 29)


def drop_piece(index: Metadata) -> None:
    index.state_dict_metadata["w"].chunks.pop()  # type: ignore[union-attr]


def enlarge(index: Metadata) -> None:
    index.state_dict_metadata["w"].size = torch.Size((1 << 20, 1 << 20))  # type: ignore[union-attr]


def lead_outside(index: Metadata) -> None:
    for info in index.storage_data.values():
        info.relative_path = "../secret"


def run_past_the_end(index: Metadata) -> None:
    for info in index.storage_data.values():
        info.length = 1 << 40


def compress(index: Metadata) -> None:
    for info in index.storage_data.values():
        info.transform_descriptors = ["zstd"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (drop_piece, "pieces of 'w' are missing"),
        (enlarge, "more than is stored"),
        (lead_outside, "outside its own folder"),
        (run_past_the_end, "truncated"),
        (compress, "compressed or encrypted"),
    ],
)
def test_an_index_that_lies(how: Callable[[Metadata], None], words: str, tmp_path: Path) -> None:
    in_pieces(tmp_path / "c")
    change(tmp_path / "c", how)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(tmp_path / "c")
    assert caught.value.hint


class Bomb:
    """Unpickling it creates a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.canary,)


def test_code_in_an_index_or_a_piece_does_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    trained(tmp_path / "c")
    index = (tmp_path / "c" / ".metadata").read_bytes()
    bombs = [
        pickle.dumps(Bomb(canary)),
        pickle.dumps({"state_dict_metadata": Bomb(canary)}),
        # A class that is allowed, and an attribute of what it can reach.
        b"\x80\x04\x8c\x28torch.distributed.checkpoint.filesystem\x8c\x0cos.makedirs\x93.",
        b"cos\nmkdir\n(V" + str(canary).encode() + b"\ntR.",
        b"\x80\x02ctorch\nload\n)R.",
        b"\x80\x02cbuiltins\ngetattr\n)R.",
    ]
    for content in bombs:
        (tmp_path / "c" / ".metadata").write_bytes(content)
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / "c")
    (tmp_path / "c" / ".metadata").write_bytes(index)
    torch.save(Bomb(canary), tmp_path / "piece")
    (piece,) = (tmp_path / "c").glob("*.distcp")
    size = (tmp_path / "piece").stat().st_size
    piece.write_bytes((tmp_path / "piece").read_bytes().ljust(piece.stat().st_size, b"\0"))

    def point(index: Metadata) -> None:
        for info in index.storage_data.values():
            info.offset, info.length = 0, size

    change(tmp_path / "c", point)
    with pytest.raises(CheckpointError):
        dict(open_checkpoint(tmp_path / "c").items())
    assert not canary.exists()
