"""Checkpoints in several files, which an index names: safetensors, or PyTorch's."""

from pathlib import Path

from curvcli.errors import CheckpointError
from curvcli.files import check_regular
from curvcli.loading.checkpoints.archive import read_json
from curvcli.loading.checkpoints.checkpoint import Checkpoint
from curvcli.loading.checkpoints.pickled import read_torch
from curvcli.loading.checkpoints.safetensors import read_safetensors
from curvcli.loading.checkpoints.sources import Source, TensorInfo


def read_sharded(path: Path, unsafe_pickle: bool = False) -> Checkpoint:
    """Open the shards that an ``.index.json`` names.

    Raises:
        CheckpointError: it is no index, or its shards are missing, damaged or outside its own folder.
    """
    try:
        weight_map = dict(read_json(path, CheckpointError)["weight_map"])
        if not all(isinstance(name, str) for name in weight_map.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{path.name} is not an index of shards: no 'weight_map' from names to files",
            "name the .safetensors.index.json or .bin.index.json file",
        ) from None
    shards: dict[str, Checkpoint] = {}
    for name in dict.fromkeys(weight_map.values()):
        shard = check_shard(path, name)
        if shard.suffix in (".bin", ".pt", ".pth"):
            shards[name] = read_torch(shard, unsafe_pickle)
        else:
            shards[name] = read_safetensors(shard)
    if len({shard.format for shard in shards.values()}) > 1:
        raise CheckpointError(f"{path.name} names shards of two formats", "save all of them in one")
    known = {name: {t.name: t for t in shard.tensors} for name, shard in shards.items()}
    tensors: list[TensorInfo] = []
    for tensor, name in weight_map.items():
        found = known[name].get(tensor)
        if found is None:
            raise CheckpointError(
                f"{path.name}: {tensor!r} is not in its shard {name!r}", "copy all shards again"
            )
        tensors.append(found)
    sources: dict[str, Source] = {
        tensor: source
        for name, shard in shards.items()
        for tensor, source in shard.sources.items()
        if weight_map.get(tensor) == name
    }
    return Checkpoint(
        path,
        "sharded torch"
        if "torch" in {s.format for s in shards.values()}
        else "sharded safetensors",
        tensors,
        sources,
        {"shards": str(len(shards))},
        files=[shard.path for shard in shards.values()],
    )


def check_shard(index: Path, name: str) -> Path:
    """The shard that an index names: a regular file beside it, or a link to where the Hugging Face cache keeps it.

    Raises:
        CheckpointError: it is missing, no regular file, or somewhere else.
    """
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise CheckpointError(
            f"{index.name} names the shard {name!r} outside its own folder",
            "shards lie beside their index",
        )
    shard = index.parent / name
    check_regular(shard, CheckpointError, "shard")
    folder, place = index.resolve().parent, shard.resolve().parent
    own = index.parent.resolve()
    cache = own.parent.parent / "blobs" if own.parent.name == "snapshots" else own
    if place not in (folder, own, cache):
        raise CheckpointError(
            f"{index.name} names the shard {shard.name!r}, a link that leads outside its own folder",
            "copy the shard itself",
        )
    return shard
