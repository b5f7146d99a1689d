"""Every checkpoint format -> named tensors. Nothing in a file runs unless the user says so."""

from pathlib import Path
from typing import Literal

from curvcli.errors import CheckpointError, some
from curvcli.files import check_regular
from curvcli.loading.checkpoints.archive import archive_kind
from curvcli.loading.checkpoints.checkpoint import Checkpoint, Format, tensor_infos
from curvcli.loading.checkpoints.distributed import INDEX, read_distributed
from curvcli.loading.checkpoints.pickled import read_torch
from curvcli.loading.checkpoints.safetensors import read_safetensors
from curvcli.loading.checkpoints.sharded import read_sharded
from curvcli.loading.checkpoints.sources import in_memory


def open_checkpoint(
    path: Path, unsafe_pickle: bool = False, weights: str | None = None
) -> Checkpoint:
    """Open a checkpoint of any known format, recognised by its content.

    Args:
        path: ``.safetensors``, an ``.index.json`` of shards, a directory with one of these or of
            ``torch.distributed.checkpoint``, a PyTorch file, a ``torch.export`` program or TorchScript.
        unsafe_pickle: let a PyTorch file run the code it contains.
        weights: which of several sets of weights, by its key or the first part of its names.

    Raises:
        CheckpointError: missing, truncated, not what its name says, or a pickle that needs code.
    """
    if path.is_dir() and (path / INDEX).exists():
        return read_distributed(path, weights)
    if path.is_dir():
        path = _in_directory(path)
    check_regular(path, CheckpointError)
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be read: {error.strerror}", "check its permissions"
        ) from None
    kind = _sniff(head, path)
    if path.suffix in _DATA:
        raise CheckpointError(
            f"{path.name} is a file of data ({path.suffix}), not a checkpoint",
            "name the weights first (.safetensors, .pt), and the data by --data",
        )
    if path.suffix == ".safetensors" and kind != "safetensors":
        raise CheckpointError(
            f"{path.name} is named .safetensors but holds {_KINDS[kind]}",
            "export it as safetensors, or rename it to what it is (.pt)",
        )
    if kind == "pickle" or (kind == "zip" and archive_kind(path) == "torch"):
        return read_torch(path, unsafe_pickle, weights)
    checkpoint = _opened(path, kind, unsafe_pickle)
    if weights is not None:
        checkpoint.only(weights)
    return checkpoint


def _opened(path: Path, kind: "_Kind", unsafe_pickle: bool) -> Checkpoint:
    if kind == "safetensors":
        return read_safetensors(path)
    if kind == "json":
        return read_sharded(path, unsafe_pickle)
    if kind == "zip" and (inner := archive_kind(path)) != "torch":
        return _program(path, inner, unsafe_pickle)
    raise CheckpointError(
        f"{path.name} holds {_KINDS[kind]}, not a checkpoint",
        "expected safetensors or a PyTorch .pt/.pth file (also sharded, by the .index.json)",
    )


_DATA = (".npz", ".npy", ".csv", ".parquet")
_Kind = Literal["safetensors", "json", "zip", "pickle", "lfs", "empty", "unknown"]
_KINDS: dict[_Kind, str] = {
    "safetensors": "safetensors",
    "json": "JSON",
    "zip": "a zip archive (a PyTorch file?)",
    "pickle": "a Python pickle",
    "lfs": "a Git LFS pointer instead of the weights (run 'git lfs pull')",
    "empty": "nothing (0 bytes)",
    "unknown": "an unknown format",
}


def _sniff(head: bytes, path: Path) -> _Kind:
    if not head:
        return "empty"
    if head.startswith(b"version https://git-lfs"):
        return "lfs"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "pickle"
    if path.suffix == ".safetensors" or (len(head) > 8 and head[8:9] == b"{"):
        return "safetensors"
    if head.lstrip()[:1] == b"{":
        return "json"
    return "unknown"


def _in_directory(path: Path) -> Path:
    _refuse_deepspeed(path)
    for pattern in (
        "model.safetensors.index.json", "model.safetensors", "adapter_model.safetensors",
        "pytorch_model.bin.index.json", "pytorch_model.bin",
        "*.safetensors.index.json", "*.safetensors", "*.bin.index.json", "*.pt2", "*.pt", "*.pth", "*.ckpt", "*.bin",
    ):  # fmt: skip
        found = sorted(path.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise CheckpointError(
                f"the directory {str(path)!r} holds {len(found)} checkpoints: {some(f.name for f in found)}",
                f"name one of them; 'curvcli track model.toml {path}' looks at all of them in order, with the model "
                "and data that model.toml names ('curvcli init' writes one)",
            )
    raise CheckpointError(f"the directory {str(path)!r} holds no checkpoint", "name the file")


def _refuse_deepspeed(path: Path) -> None:
    """DeepSpeed has a program of its own that puts the pieces together, and writes it beside them."""
    if any(path.glob("*zero_pp_rank_*")) or any(path.glob("*/*zero_pp_rank_*")):
        root = path if any(path.glob("*/*zero_pp_rank_*")) else path.parent
        raise CheckpointError(
            f"the directory {str(path)!r} holds DeepSpeed's ZeRO shards: each file has a part of every weight",
            f"put them together by DeepSpeed's own script: python {root / 'zero_to_fp32.py'} {root} weights, and name "
            "what it writes",
        )


def _program(
    path: Path, kind: Literal["program", "torchscript"], unsafe_pickle: bool
) -> Checkpoint:
    """A file that holds the network as well as its weights."""
    from curvcli.loading.checkpoints.exported import load_program
    from curvcli.loading.checkpoints.torchscript import ScriptProgram, load_torchscript

    load = load_program if kind == "program" else load_torchscript
    module = load(path, unsafe_pickle)
    notes = []
    if isinstance(module, ScriptProgram) and module.stateful:
        notes.append(
            f"the program keeps {some(module.stateful)} between calls: every call starts from what the file holds"
        )
    tensors = module.state_dict()
    form: Format = "torch.export program" if kind == "program" else "TorchScript"
    return Checkpoint(
        path, form, tensor_infos(tensors), in_memory(tensors), notes=notes, program=module
    )
