"""Every checkpoint format is read, every damaged or hostile one is refused with a sentence."""

import contextlib
import json
import os
import pickle
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from curvcli.errors import CheckpointError, CurvError, ModelError
from curvcli.loading.checkpoints.formats import open_checkpoint
from curvcli.loading.models.model import build_model, compute_dtype, load_weights


def weights() -> dict[str, torch.Tensor]:
    return {"0.weight": torch.ones(3, 2), "0.bias": torch.arange(3.0)}


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3))


def refused(path: Path, match: str, unsafe: bool = False) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load_weights(model(), open_checkpoint(path, unsafe))
    assert caught.value.hint


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"model": w, "optimizer": {"state": {}}},
        lambda w: {"model_state_dict": w},
        lambda w: {"ema": w, "step": torch.tensor(3)},
        lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}},
        lambda w: {f"_orig_mod.{k}": v for k, v in w.items()},
        lambda w: {f"module._orig_mod.{k}": v for k, v in w.items()},
        lambda w: {"state_dict": {f"model.{k}": v for k, v in w.items()}},
    ],
)
def test_state_dicts_nested_and_prefixed(wrap: Callable[[object], object], tmp_path: Path) -> None:
    torch.save(wrap(weights()), tmp_path / "m.pt")
    net = model()
    load_weights(net, open_checkpoint(tmp_path / "m.pt"))
    assert torch.equal(net.state_dict()["0.bias"], torch.arange(3.0))


def test_safetensors_are_read_lazily_with_their_metadata(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "m.safetensors", {"format": "pt", "step": "7"})
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert {t.name: (t.shape, t.dtype, t.bytes) for t in checkpoint.tensors} == {
        "0.weight": ((3, 2), "float32", 24),
        "0.bias": ((3,), "float32", 12),
    }
    assert checkpoint.metadata["step"] == "7"
    net = model()
    load_weights(net, checkpoint)
    assert torch.equal(net.state_dict()["0.weight"], torch.ones(3, 2))


def shard(folder: Path, second: str = "b.safetensors") -> Path:
    save_file({"0.weight": torch.ones(3, 2)}, folder / "a.safetensors")
    save_file({"0.bias": torch.arange(3.0)}, folder / "b.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"0.weight": "a.safetensors", "0.bias": second}}))
    return index


def test_sharded_safetensors(tmp_path: Path) -> None:
    net = model()
    checkpoint = open_checkpoint(shard(tmp_path))
    load_weights(net, checkpoint)
    assert torch.equal(net.state_dict()["0.bias"], torch.arange(3.0))
    assert len(checkpoint.sha256()) == 64
    assert open_checkpoint(tmp_path).format == "sharded safetensors"


@pytest.mark.parametrize("name", ["../b.safetensors", "/etc/passwd", "..", "c/b.safetensors"])
def test_index_that_leaves_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    refused(shard(tmp_path, name), "outside its own folder")


def test_missing_shard_and_tensor(tmp_path: Path) -> None:
    refused(shard(tmp_path, "c.safetensors"), "no shard")
    refused(shard(tmp_path, "a.safetensors"), "not in its shard")


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "there is no file")
    (tmp_path / "empty.pt").write_bytes(b"")
    refused(tmp_path / "empty.pt", "0 bytes")
    (tmp_path / "text.pt").write_text("hello")
    refused(tmp_path / "text.pt", "unknown format")
    (tmp_path / "lfs.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    refused(tmp_path / "lfs.safetensors", "Git LFS pointer")
    torch.save(weights(), tmp_path / "zip.safetensors")
    refused(tmp_path / "zip.safetensors", "named .safetensors but holds a zip")
    (tmp_path / "x.json").write_text('{"a": 1}')
    refused(tmp_path / "x.json", "weight_map")
    refused(tmp_path / "nothing-here", "there is no file")


def test_truncated_files(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "m.safetensors")
    whole = (tmp_path / "m.safetensors").read_bytes()
    torch.save(weights(), tmp_path / "m.pt")
    archive = (tmp_path / "m.pt").read_bytes()
    for cut in (4, 20, len(whole) - 1):
        (tmp_path / "m.safetensors").write_bytes(whole[:cut])
        refused(tmp_path / "m.safetensors", "truncated")
    (tmp_path / "m.pt").write_bytes(archive[: len(archive) // 2])
    refused(tmp_path / "m.pt", "truncated or damaged")


def header(content: object) -> bytes:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(raw)) + raw


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (struct.pack("<Q", 2**62) + b"{}", "header would be"),
        (struct.pack("<Q", 500) + b"{}", "truncated"),
        (header(b"not json"), "not JSON"),
        (header([1, 2]), "not an object"),
        (header({}), "no tensors"),
        (
            header({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
            "promises",
        ),
        (
            header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}) + b"0000",
            "not a valid",
        ),
        (
            header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}) + b"0000",
            "not a valid",
        ),
        (header({"a": {"shape": [1]}}), "not a valid|malformed"),
        (header(b"[" * 100_000), "not JSON"),
    ],
)
def test_headers_that_lie(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    refused(tmp_path / "m.safetensors", match)


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.canary,)


@pytest.mark.parametrize(
    "wrap", [lambda b: b, lambda b: {"state_dict": {"w": torch.ones(1), "b": b}}]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_does_not_run(
    wrap: Callable[[Bomb], object], legacy: bool, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    torch.save(wrap(Bomb(canary)), tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / "m.pt", "needs to run code")
    assert not canary.exists()
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb(canary), protocol=2))
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "raw.pt")
    assert not canary.exists()


def test_the_refusal_names_the_flag_and_the_flag_works(tmp_path: Path) -> None:
    torch.save(model(), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "whole.pt")
    assert caught.value.hint is not None
    assert "--unsafe-pickle" in caught.value.hint
    checkpoint = open_checkpoint(tmp_path / "whole.pt", unsafe_pickle=True)
    assert any("whole pickled module" in n for n in checkpoint.notes)


def test_checkpoints_of_trainers(tmp_path: Path) -> None:
    """What Lightning and the Hugging Face Trainer write."""
    net = model()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    lightning = {
        "epoch": 1, "global_step": 10, "pytorch-lightning_version": "2.5.0", "loops": {"fit_loop": {"a": {}}},
        "state_dict": {f"model.{k}": v for k, v in net.state_dict().items()}, "callbacks": {}, "lr_schedulers": [],
        "optimizer_states": [optimizer.state_dict()], "hyper_parameters": {"lr": 1e-3},
    }  # fmt: skip
    torch.save(lightning, tmp_path / "last.ckpt")
    fresh = model()
    load_weights(fresh, open_checkpoint(tmp_path / "last.ckpt"))
    assert torch.equal(fresh.state_dict()["0.weight"], net.state_dict()["0.weight"])
    folder = tmp_path / "checkpoint-10"
    folder.mkdir()
    save_file(net.state_dict(), folder / "model.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save({"seed": 1}, folder / "rng_state.pth")
    assert open_checkpoint(folder).path == folder / "model.safetensors"
    refused(folder / "optimizer.pt", "state of an optimizer, without the weights")


def test_quantised_tensors_say_what_to_do(tmp_path: Path) -> None:
    stored = weights()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao's quantised tensors are deprecated
        packed = torch.quantize_per_tensor(stored["0.weight"], 0.1, 0, torch.qint8)
        torch.save({**stored, "0.weight": packed}, tmp_path / "q.pt")
        with pytest.raises(ModelError, match="quantised weights have no curvature") as caught:
            load_weights(model(), open_checkpoint(tmp_path / "q.pt"))
    assert "before quantisation" in (caught.value.hint or "")


def test_a_file_without_weights(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "no weights found")
    torch.save([torch.ones(3)], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "no weights found")


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, folder / "m.safetensors")
    return folder / "m.safetensors"


def test_keys_that_do_not_fit_are_listed_with_the_nearest(tmp_path: Path) -> None:
    path = save(tmp_path, {"0.weight": torch.ones(3, 2), "0.bais": torch.ones(3)})
    with pytest.raises(ModelError) as caught:
        load_weights(model(), open_checkpoint(path))
    message = str(caught.value)
    assert "1 missing ('0.bias'; nearest in the file: '0.bais')" in message
    assert "1 unexpected ('0.bais')" in message
    notes = load_weights(model(), open_checkpoint(path), allow_partial=True)
    assert any("loaded in part" in n for n in notes)


def test_shapes_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    path = save(tmp_path, {"0.weight": torch.ones(4, 2), "0.bias": torch.ones(3)})
    with pytest.raises(ModelError, match=r"0.weight \[4, 2\] instead of \[3, 2\]"):
        load_weights(model(), open_checkpoint(path))


def test_nothing_that_fits_is_an_error_even_in_part(tmp_path: Path) -> None:
    path = save(tmp_path, {"conv.weight": torch.ones(4, 2)})
    with pytest.raises(ModelError, match="no tensor of the checkpoint fits"):
        load_weights(model(), open_checkpoint(path), allow_partial=True)


def test_tied_weights_may_be_stored_once(tmp_path: Path) -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    net["b"].weight = net["a"].weight
    load_weights(net, open_checkpoint(save(tmp_path, {"a.weight": torch.full((2, 2), 5.0)})))
    assert float(net["b"].weight[0, 0].detach()) == 5.0  # type: ignore[index]


def test_half_precision_is_computed_in_float32_with_a_note(tmp_path: Path) -> None:
    path = save(tmp_path, {k: v.bfloat16() for k, v in weights().items()})
    dtype, note = compute_dtype(model(), open_checkpoint(path), "auto")
    assert dtype == torch.float32
    assert note is not None
    assert "bfloat16" in note
    assert compute_dtype(model(), open_checkpoint(path), "bfloat16") == (torch.bfloat16, None)
    double = save(tmp_path, {k: v.double() for k, v in weights().items()})
    assert compute_dtype(model(), open_checkpoint(double), "auto") == (torch.float64, None)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, {k: v.to(torch.int8) for k, v in weights().items()})
    with pytest.raises(ModelError, match="quantised"):
        load_weights(model(), open_checkpoint(path))


@given(st.binary(max_size=300), st.sampled_from([".pt", ".safetensors", ".pth", ".json", ""]))
@settings(max_examples=150, deadline=None)
def test_any_bytes_end_in_a_curv_error(content: bytes, suffix: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"m{suffix}"
        path.write_bytes(content)
        with pytest.raises(CurvError):
            open_checkpoint(path)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_damaged_checkpoint_ends_in_an_answer_or_a_curv_error(data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        if data.draw(st.booleans()):
            save_file(weights(), path)
        else:
            path = Path(folder) / "m.pt"
            torch.save(weights(), path)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(bytes(content))
        with contextlib.suppress(CurvError):
            load_weights(model(), open_checkpoint(path))


def test_factories_classes_and_instances(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n    def __init__(self, width=2): super().__init__(width, 1)\n"
        "def build(width): return Net(width)\n"
        "instance = Net(7)\nnothing = 3\n"
        "def fails(): raise ValueError('no such size')\n"
        "def wrong(): return 3\n"
    )
    at = f"{tmp_path}/nets.py:"
    assert build_model(at + "Net", {}).in_features == 2
    assert build_model(at + "build", {"width": 5}).in_features == 5
    assert build_model(at + "instance", {}).in_features == 7
    assert build_model("torch.nn:Linear", {"in_features": 2, "out_features": 3}).out_features == 3
    for name, match in [
        ("Nett", "Did you mean 'Net'"),
        ("nothing", "is a int, not a module"),
        ("fails", "ValueError: no such size"),
        ("wrong", "returned a int"),
        ("build", "missing a required argument: 'width'"),
    ]:
        with pytest.raises(ModelError, match=match):
            build_model(at + name, {})
    with pytest.raises(ModelError, match="there is no file"):
        build_model(f"{tmp_path}/none.py:Net", {})
    with pytest.raises(ModelError, match="No module named"):
        build_model("nowhere.at_all:Net", {})
    with pytest.raises(ModelError, match="not of the form"):
        build_model("justaname", {})
