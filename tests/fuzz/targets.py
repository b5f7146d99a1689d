"""One fuzz target for each format: bytes -> an answer or a `CurvError`, never another exception.

Inputs are mutations of a corpus that is made here: honest files, and hostile ones. Archives are mutated inside too
(entries changed, with correct checksums), or the checksum would be the only thing that is ever tested.
"""

import contextlib
import io
import json
import os
import pickle
import struct
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from curvcli.errors import CurvError
from curvcli.loading.checkpoints.formats import open_checkpoint
from curvcli.loading.data.batches import read_batches
from curvcli.loading.data.images import image_batches
from curvcli.loading.data.tabular import read_table
from curvcli.loading.data.text import read_records
from curvcli.loading.models.guess import recognise
from curvcli.loading.models.huggingface import Directory
from curvcli.loading.models.library import RAW
from curvcli.loading.spec import make_spec, read_target_file
from tests.fuzz import kept

MEMORY = 4 << 30
"""Resident memory that no input may make the process grow by."""


class Bomb:
    """Unpickling it creates a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.canary,)


CANARY = Path(tempfile.gettempdir()) / f"curvcli-canary-{os.getpid()}"


def _checkpoint(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    for _, tensor in checkpoint.items():
        tensor.numel()
    recognise(checkpoint)


def _data(path: Path) -> None:
    read_batches(str(path), batch_size=2, max_batches=2)


def _distributed(path: Path) -> None:
    """The bytes are the index; the pieces are honest."""
    folder = path.parent / "c"
    folder.mkdir()
    (folder / "__0_0.distcp").write_bytes(_pieces()[1])
    (folder / ".metadata").write_bytes(path.read_bytes())
    _checkpoint(folder)


@cache
def _pieces() -> tuple[bytes, bytes]:
    """Index and pieces of a directory of torch.distributed.checkpoint."""
    from torch.distributed.checkpoint.state_dict_saver import save

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"a": torch.ones(3, 2), "n": 3}, checkpoint_id=folder, no_dist=True)
        return (Path(folder) / ".metadata").read_bytes(), (
            Path(folder) / "__0_0.distcp"
        ).read_bytes()


def _directory(path: Path) -> None:
    """The bytes are each of the configurations in turn; weights are not reached."""
    for name in ("config.json", "adapter_config.json", "modules.json"):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).write_bytes(path.read_bytes())
            with contextlib.suppress(CurvError):
                made = Directory(Path(folder))
                _ = made.task, made.loss()


def _images(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "class"
        place.mkdir()
        (place / "a.png").write_bytes(path.read_bytes())
        list(image_batches(Path(folder), RAW, None, []))


def _toml(path: Path) -> None:
    make_spec(read_target_file(path, ("hessian",)).settings)


TARGETS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "safetensors": (".safetensors", _checkpoint),
    "index": (".index.json", _checkpoint),
    "torch": (".pt", _checkpoint),
    "pickle": (".pth", _checkpoint),
    "distributed": (".metadata", _distributed),
    "program": (".pt2", _checkpoint),
    "torchscript": (".ts", _checkpoint),
    "npz": (".npz", _data),
    "csv": (".csv", lambda path: _use(read_table(path, None, (), []))),
    "parquet": (".parquet", lambda path: _use(read_table(path, None, (), []))),
    "jsonl": (".jsonl", lambda path: _use(list(read_records(path)))),
    "text": (".txt", lambda path: _use(list(read_records(path)))),
    "directory": (".json", _directory),
    "images": (".png", _images),
    "target file": (".toml", _toml),
    "project": (".toml", kept.read_project),
    "rules": (".txt", kept.read_rule),
    "state": (".state", kept.read_state),
    "run log": (".state", kept.read_run_log),
    "baseline": (".json", kept.read_kept_baseline),
    "cache": (".json", kept.read_answer),
    "optimizer": (".pt", kept.read_optimizer),
}


def _use(_: Any) -> None:
    """The answer itself is not looked at."""


def run(name: str, content: bytes) -> None:
    """Feed one input to a target.

    Raises:
        AssertionError: code ran, or the memory grew beyond `MEMORY`.
    """
    suffix, target = TARGETS[name]
    before = resident()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"input{suffix}"
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(CurvError):
                target(path)
    assert not CANARY.exists(), "an input made code run"
    assert resident() - before < MEMORY, "an input filled the memory"


def resident() -> int:
    """Largest resident memory so far, in bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@cache
def corpus(name: str) -> list[bytes]:
    """Honest and hostile inputs of a format."""
    with tempfile.TemporaryDirectory() as folder:
        return _MAKERS.get(name, _plain)(Path(folder), name)


def _plain(folder: Path, name: str) -> list[bytes]:
    return {
        "csv": [b"a,b,y\n1,2,0\n3,4,1\n", b"y\n1\n", b"a,a\n1,2\n", b'"a\n', b"a,y\n,1\n", b"a,y\nx,cat\n1,dog\n"],
        "jsonl": [b'{"text": "a"}\n{"text": "b", "label": 1}\n', b"[1]\n", b'{"text": 3}', b"[" * 100_000],
        "text": [b"one line\nanother\n", b"\xff\xfe", b"\n\n"],
        "directory": [
            b'{"architectures": ["BertForMaskedLM"], "model_type": "bert"}',
            b'{"auto_map": {"AutoModel": "a.B"}}', b'[{"path": "../x", "type": "os.system"}]',
            b'{"base_model_name_or_path": "/etc"}', b'{"architectures": 3, "id2label": 7}', b"[" * 100_000,
        ],
        "target file": [
            b'checkpoint = "a.pt"\nloss = "mse"\n[hessian]\ntop = 3\n', b"batch-size = -1\n", b"a = [" * 500,
            b"data = 3", b"seed = 18446744073709551616\n", b"hessian = 3\n", b'unsafe-pickle = true\n',
            b'model-args = { a = 1979-05-27T07:32:00Z }\n', b"[hessian]\nstate = 3\n",
            b'loss = "mse"\nobjective = "a:b"\n',
        ],
    }[name]  # fmt: skip


def _index(folder: Path, _: str) -> list[bytes]:
    """Indices, also of a shard that is there: the index's own text is no safetensors file."""
    return [
        b'{"weight_map": {"a": "../b.safetensors"}}', b'{"weight_map": {"a": 3}}', b'{"weight_map": []}',
        b'{"weight_map": {"a": "/etc/passwd"}}', b"{" * 50_000, b'{"weight_map": {"a": ["b"]}}',
        b'{"weight_map": {"a": "input.index.json", "b": "."}}', b'{"weight_map": {"a": "b.safetensors", "a": "c"}}',
    ]  # fmt: skip


def _indices(folder: Path, _: str) -> list[bytes]:
    return [_pieces()[0], pickle.dumps(Bomb(CANARY), protocol=2), *_torch(folder, "pickle")[-1:]]


def _safetensors(folder: Path, _: str) -> list[bytes]:
    save_file({"a.weight": torch.ones(3, 2), "a.bias": torch.ones(3)}, folder / "m", {"k": "v"})

    def header(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text

    lie = {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    return [
        (folder / "m").read_bytes(),
        header(json.dumps(lie).encode()),
        header(b"[" * 50_000),
        struct.pack("<Q", 1 << 62) + b"{}",
    ]


def _torch(folder: Path, name: str) -> list[bytes]:
    found = []
    huge = torch.ones(1).expand(1 << 20, 1 << 20)
    for content in (
        {"state_dict": {"a": torch.ones(3)}, "optimizer": {"state": {}}},
        {"state_dict": {"a": Bomb(CANARY)}},
        {"a": huge},
        torch.ones(2),
        {1: {"a": [torch.ones(2)]}},
    ):
        torch.save(content, folder / "m", _use_new_zipfile_serialization=name == "torch")
        found.append((folder / "m").read_bytes())
    found.append(pickle.dumps(Bomb(CANARY), protocol=2))
    # bytearray(2 ** 40): a small pickle that asks for a terabyte.
    found.append(b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.")
    return found


def _program(folder: Path, _: str) -> list[bytes]:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net, (torch.ones(2, 2),)), folder / "m.pt2")
    return [(folder / "m.pt2").read_bytes()]


def _torchscript(folder: Path, _: str) -> list[bytes]:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(net).save(str(folder / "m.ts"))
    return [(folder / "m.ts").read_bytes()]


def _npz(folder: Path, _: str) -> list[bytes]:
    np.savez(folder / "a.npz", x=np.ones((3, 2), "f4"), y=np.arange(3))
    np.savez(folder / "o.npz", x=np.array([Bomb(CANARY)], dtype=object))
    lie = io.BytesIO()
    with zipfile.ZipFile(lie, "w") as archive:
        inner = io.BytesIO()
        np.save(inner, np.ones(3))
        honest, lying = b"(3,), }" + b" " * 10, b"(30000000000,), }"
        archive.writestr("x.npy", inner.getvalue().replace(honest, lying))
    return [(folder / "a.npz").read_bytes(), (folder / "o.npz").read_bytes(), lie.getvalue()]


def _parquet(folder: Path, _: str) -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1.0, 2.0], "y": [0, 1]}), folder / "m")
    return [(folder / "m").read_bytes()]


def _png(_: Path, __: str) -> list[bytes]:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "png")
    return [buffer.getvalue()]


_MAKERS: dict[str, Callable[[Path, str], list[bytes]]] = {
    "safetensors": _safetensors, "torch": _torch, "pickle": _torch, "program": _program, "torchscript": _torchscript,
    "npz": _npz, "parquet": _parquet, "images": _png, "index": _index, "distributed": _indices,
    "project": kept.projects, "rules": kept.rules,
    "state": kept.states,
    "run log": kept.logs, "baseline": kept.baselines, "cache": kept.answers, "optimizer": kept.optimizers,
}  # fmt: skip
# Readers written in C++ that trust what carries a right checksum: inside, only text is changed.
_TEXT_ONLY = {"torchscript": (".py",), "program": (".json",)}


@st.composite
def inputs(draw: st.DrawFn, name: str) -> bytes:
    """Mutations of the corpus of a format."""
    content = draw(st.sampled_from(corpus(name)))
    if content.startswith(b"PK") and draw(st.booleans()):
        return _inside(draw, content, _TEXT_ONLY.get(name))
    return _mutated(draw, content)


def _mutated(draw: st.DrawFn, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(changed)))
        kind = draw(st.sampled_from(("flip", "cut", "insert", "drop")))
        if kind == "flip" and place < len(changed):
            changed[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del changed[place:]
        elif kind == "insert":
            piece = draw(st.binary(max_size=8) | st.sampled_from(_PIECES))
            changed[place:place] = piece
        else:
            del changed[place : place + draw(st.integers(1, 16))]
    return bytes(changed)


_PIECES = [
    b"9" * 20, b"-1", b"null", b"{}", b"[]", b'"', b"\x00", b"../", b"\x1b[31m", b"NaN", b"1e999", b"__import__('os')",
]  # fmt: skip


def _inside(draw: st.DrawFn, content: bytes, only: tuple[str, ...] | None) -> bytes:
    """One entry of an archive changed, with a right checksum."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        names = [n for n in old.namelist() if only is None or n.endswith(only)]
        chosen = draw(st.sampled_from(names))
        for name in old.namelist():
            entry = old.read(name)
            new.writestr(name, _mutated(draw, entry) if name == chosen else entry)
    return out.getvalue()
