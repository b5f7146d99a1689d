"""What a user or a stranger gives wrongly ends in a sentence and exit code 2; 70 is for defects of curvcli."""

import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.oracles.program import answer, invoke

X, Y = np.ones((4, 2), "f4"), np.arange(4) % 2
QUICK = ["hessian", "t.toml", "--top", "1", "--bottom", "0"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small network and its data."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2))
    save_file(net.state_dict(), "m.safetensors")
    np.savez("d.npz", x=X, y=Y)
    Path("t.toml").write_text(
        'checkpoint = "m.safetensors"\nmodel = "auto"\ndata = "d.npz"\nloss = "cross_entropy"\n'
    )
    Path("user.py").write_text(USER)
    return tmp_path


def refused(*arguments: str) -> str:
    done = invoke(*arguments)
    assert done.exit_code == 2, (done.stderr, done.exception)
    assert "defect of curvcli" not in done.stderr
    return str(done.stderr)


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode() + b" " * ((64 - (len(header) + 11) % 64) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def array(shape: str) -> bytes:
    return npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}", bytes(4))


ARRAYS: dict[str, Callable[[], dict[str, bytes]]] = {
    "another entry": lambda: {"readme.txt": b"hello"},
    "a folder": lambda: {"sub/": b""},
    "long double": lambda: {"x.npy": saved(X.astype(np.longdouble))},
    "text": lambda: {"x.npy": saved(np.array(["a"]))},
    "too large": lambda: {"x.npy": saved(np.array([2**63], "u8"))},
    "70 dimensions": lambda: {"x.npy": array("(" + "1," * 70 + ")")},
    "a product that overflows": lambda: {"x.npy": array(f"({2**62}, {2**62}, 0)")},
    "a negative length": lambda: {"x.npy": array("(-1,)")},
}


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, content)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_are_none(kind: str, folder: Path) -> None:
    """Entries, types and shapes of an .npz file that cannot be used."""
    with zipfile.ZipFile("bad.npz", "w") as archive:
        for name, content in ARRAYS[kind]().items():
            archive.writestr(name, content)
    assert "bad.npz" in refused(*QUICK, "--data", "bad.npz")


def test_arrays_of_another_machine_are_the_same_numbers(folder: Path) -> None:
    """Byte order and unsigned types change no digit."""
    np.savez("big.npz", x=X.astype(">f4"), y=Y.astype(">u8"))
    one, other = (answer(*QUICK, "--data", d)[1]["result"]["top"] for d in ("d.npz", "big.npz"))
    assert one == other


def tensors() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "meta": torch.empty(4, 2, device="meta"),
            "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "sparse": torch.eye(4).to_sparse(),
            "sparse rows": torch.eye(4).to_sparse_csr(),
            "float4": torch.zeros(4, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
            "bits": torch.ones(4, dtype=torch.uint8).view(torch.bits8),
        }


@pytest.mark.parametrize("kind", list(tensors()))
def test_tensors_that_nothing_can_be_computed_with(kind: str, folder: Path) -> None:
    """As weights and as data."""
    torch.save({"x": tensors()[kind], "y": torch.zeros(4, dtype=torch.int64)}, "bad.pt")
    for command in (["info", "bad.pt"], [*QUICK, "--data", "bad.pt"]):
        assert "nothing can be computed" in refused(*command)


def test_quantised_data_is_refused(folder: Path) -> None:
    """Quantised by tensor or by channel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for x in (
            torch.quantize_per_tensor(torch.ones(4, 2), 0.1, 0, torch.qint8),
            torch.quantize_per_channel(torch.ones(4, 2), torch.ones(4), torch.zeros(4), 0, torch.qint8),
        ):  # fmt: skip
            torch.save({"x": x, "y": torch.zeros(4, dtype=torch.int64)}, "bad.pt")
            assert "quantised" in refused(*QUICK, "--data", "bad.pt")


@pytest.mark.parametrize(
    ("dtype", "shape"), [("F4", [8]), ("F6_E2M3", [4]), ("F32", [1] * 70), ("F8_E8M0", [4])]
)
def test_headers_that_torch_has_no_tensor_for(dtype: str, shape: list[int], folder: Path) -> None:
    """`info` shows them; what needs their values says why it cannot have them."""
    size = 3 if dtype.startswith("F6") else 4
    header = json.dumps({"0.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}})
    Path("bad.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header.encode() + bytes(size)
    )
    code, envelope = answer("info", "bad.safetensors")
    assert code == 0
    assert envelope["result"]["tensors"][0]["shape"] == shape
    refused("hessian", "bad.safetensors", "--model", "auto", "--data", "d.npz", "--loss", "mse")


def holding_itself() -> dict[str, Any]:
    listed: list[Any] = []
    listed.append(listed)
    found: dict[str, Any] = {"list": listed}
    for key in ("state_dict", "optimizer", "x"):
        inner: dict[str, Any] = {}
        inner[key] = inner
        found[key] = inner
    return found


@pytest.mark.parametrize("kind", list(holding_itself()))
def test_containers_that_hold_themselves(kind: str, folder: Path) -> None:
    """As weights, data and state of an optimizer."""
    torch.save(holding_itself()[kind], "bad.pt")
    refused("info", "bad.pt")
    refused(*QUICK, "--data", "bad.pt")
    refused(*QUICK, "--matrix", "preconditioned", "--optimizer", "bad.pt")


@pytest.mark.parametrize(
    "text",
    ['{"weight_map": {"a": ["b.safetensors"]}}', '{"weight_map": [["a", {"b": 1}]]}', '{"weight_map": {"a": null}}'],
)  # fmt: skip
def test_an_index_with_other_values(text: str, folder: Path) -> None:
    """Names of files are texts."""
    Path("x.index.json").write_text(text)
    assert "no 'weight_map'" in refused("info", "x.index.json")


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000, "a = " + "{a=" * 3000, ".".join(["a"] * 5_000) + " = 1", "seed = " + "9" * 6000,
        "seed = 18446744073709551616", "checkpoint = 3", "hessian = 3", "model = [1]", "seed = 1979-05-27",
        "memory = 3", "\x00", "hessian = [[1]]",
    ],
)  # fmt: skip
def test_absurd_target_files(text: str, folder: Path) -> None:
    """Deep, huge, and of wrong types."""
    Path("bad.toml").write_text(text)
    refused("hessian", "bad.toml")


@pytest.mark.parametrize(
    "text", ["tool = 3", "[tool]\ncurvcli = 3", "tool = [[[", "[tool.curvcli]\nseed = []"]
)
def test_absurd_projects(text: str, folder: Path) -> None:
    """The pyproject of the working directory too."""
    Path("pyproject.toml").write_text(text)
    refused("info", "m.safetensors")


@pytest.mark.parametrize(
    "flags",
    [
        ["--seed", str(2**64)], ["--seed", str(2**63)], ["--loss-arg", "a=" + "[" * 3000],
        ["--model-arg", "a=" + "9" * 5000], ["--max-batches", str(2**70)], ["--data", "a" * 5000], ["--data", "a\0b"],
        ["--timeout", "1e400"], ["--memory", "9e999GB"], ["--weight-decay", "nan"],
    ],
)  # fmt: skip
def test_absurd_flags(flags: list[str], folder: Path) -> None:
    """Numbers and texts beyond every bound."""
    refused(*QUICK, *flags)


USER = """
import sys
import torch
from torch import nn

def loss(outputs, targets):
    raise KeyError("mine")

def zero(outputs, targets):
    return 0 * outputs.sum()

def build():
    raise ZeroDivisionError("mine")

def ends():
    sys.exit(0)

def batches():
    yield torch.ones(2, 2), torch.zeros(2, dtype=torch.int64)
    raise IndexError("mine")

class Listed:
    def __len__(self):
        return 3
    def __getitem__(self, index):
        raise OSError("mine")

def listed():
    return Listed()

def objective(model, batch):
    raise AssertionError("mine")

class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
    def forward(self, x):
        raise LookupError("mine")

class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, gradient):
        raise TypeError("mine")

class Backwards(Wrong):
    def forward(self, x):
        return Identity.apply(self.layer(x))
"""
_MODEL = ["--data", "d.npz", "--loss", "cross_entropy", "--model"]


@pytest.mark.parametrize(
    ("arguments", "function"),
    [
        ([*QUICK, "--loss", "user.py:loss"], "loss"), ([*QUICK, "--objective", "user.py:objective"], "objective"),
        ([*QUICK, "--data", "user.py:batches"], "batches"), ([*QUICK, "--data", "user.py:listed"], "__getitem__"),
        ([*QUICK, "--data", "user.py:ends"], "ends"), (["hessian", *_MODEL, "user.py:ends"], "ends"),
        (["hessian", *_MODEL, "user.py:build"], "build"), (["hessian", *_MODEL, "user.py:Wrong"], "forward"),
        (["hessian", *_MODEL, "user.py:Backwards"], "backward"),
        (["backprop", *_MODEL, "user.py:Backwards"], "backward"),
        (["gradients", *_MODEL, "user.py:Backwards"], "backward"), (["jacobian", *_MODEL, "user.py:Wrong"], "forward"),
        (["saddle", *_MODEL, "user.py:Wrong"], "forward"),
    ],
)  # fmt: skip
def test_an_exception_of_the_users_own_code_is_theirs(
    arguments: list[str], function: str, folder: Path
) -> None:
    """Named with file, line and function, wherever it was raised; sys.exit too."""
    shown = refused(*arguments)
    assert "user.py, line " in shown
    assert f"in {function}" in shown


def test_a_defect_within_a_call_back_is_not_blamed_on_the_user(tmp_path: Path) -> None:
    """An exception that curvcli raised while the user's code called it is curvcli's."""
    from curvcli.analyses.shared.trouble import explained
    from curvcli.loading.settle import read_settled
    from curvcli.loading.spec import parse_size

    def users() -> None:
        parse_size(3)  # type: ignore[arg-type]

    with pytest.raises(TypeError) as caught:
        read_settled(tmp_path, users)
    assert explained(caught.value) is None


def test_a_loss_that_is_zero_has_no_slope_to_miss(folder: Path) -> None:
    """Gradient and difference agree: both are nothing."""
    assert invoke("backprop", "t.toml", "--loss", "user.py:zero").exit_code == 0


def test_a_working_directory_that_was_deleted(folder: Path) -> None:
    """Said before a library ends the program without a word."""
    code = (
        "import os, sys, tempfile\nplace = tempfile.mkdtemp()\nos.chdir(place)\nos.rmdir(place)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'curvcli', *sys.argv[1:]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "info", str(folder / "m.safetensors")],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "no working directory" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read(folder: Path) -> None:
    """As checkpoint, data and series."""
    Path("closed").mkdir(mode=0)
    for command in (["info", "closed"], [*QUICK, "--data", "closed"], ["track", "closed"]):
        refused(*command)


def test_what_the_system_says_of_a_folder_is_no_defect(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is closed to the user, seen as any user would."""
    Path("closed").mkdir()

    def closed(_: Path) -> None:
        raise PermissionError(13, "Permission denied", "closed")

    monkeypatch.setattr(Path, "iterdir", closed)
    for command in ([*QUICK, "--data", "closed"], ["track", "closed"], ["info", "closed"]):
        assert "closed" in refused(*command)
