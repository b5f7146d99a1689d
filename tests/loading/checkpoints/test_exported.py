"""Programs that hold their network (torch.export, TorchScript) are read as it is, and those that attack are refused."""

import contextlib
import copy
import importlib.util
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import curvcli
from curvcli.errors import CheckpointError, CurvError, DataError
from curvcli.loading.checkpoints.formats import open_checkpoint
from curvcli.loading.checkpoints.program_check import check_expression
from curvcli.loading.checkpoints.script_check import check_code
from curvcli.loading.checkpoints.torchscript import ScriptProgram
from tests.oracles.networks import Net


class Counter(nn.Module):
    """Its output depends on how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.calls = torch.zeros(1)

    def forward(self, x: Tensor, repeat: int = 1) -> Tensor:
        self.calls = self.calls + 1
        out: Tensor = self.layer(x) * self.calls * repeat
        return out


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def program(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    example = (torch.randn(5, 4),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch warns of itself
        made = torch.export.export(net, example, dynamic_shapes=({0: torch.export.Dim("n")},))
        torch.export.save(made, path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(6, 4)).astype("f4"), y=np.arange(6) % 3)
    return tmp_path / "d.npz"


def script(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit as a whole is deprecated
        torch.jit.script(module).save(str(path))
    return path


def hessian(path: Path, data: Path, **settings: Any) -> Any:
    run = curvcli.load(str(path), data=str(data), loss="cross_entropy", dtype="float64", **settings)
    return curvcli.analyse("hessian", run, top=2, bottom=1).result


def test_a_program_has_the_layers_and_the_spectrum_of_its_source(
    program: Path, net: Net, data: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(program)
    assert checkpoint.program is not None
    names = [name for name, _ in checkpoint.program.named_modules()]
    assert {"body", "body.0", "body.1", "body.2", "head"} <= set(names)
    assert set(net.state_dict()) == {t.name for t in checkpoint.tensors}
    (tmp_path / "source.py").write_text(
        "from tests.oracles.networks import Net\nimport torch\n"
        "def build():\n    torch.manual_seed(0)\n    return Net()\n"
    )
    exported = hessian(program, data)
    source = curvcli.load(
        model=f"{tmp_path}/source.py:build", data=str(data), loss="cross_entropy", dtype="float64"
    )
    direct = curvcli.analyse("hessian", source, top=2, bottom=1).result
    for one, other in zip(exported.top + exported.bottom, direct.top + direct.bottom, strict=True):
        assert abs(one.value - other.value) <= one.residual + other.residual


def test_torchscript_keeps_names_and_starts_every_call_anew(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    checkpoint = open_checkpoint(script(Counter(), tmp_path / "c.ts"))
    module = checkpoint.program
    assert isinstance(module, ScriptProgram)
    assert [t.name for t in checkpoint.tensors] == ["layer.weight", "layer.bias"]
    assert module.stateful == ["calls"]
    x = torch.randn(2, 4)
    first = module(x)
    assert torch.equal(first, module(x))
    assert torch.equal(copy.deepcopy(module)(x), first)
    assert torch.allclose(module(x, torch.tensor(2)), 2 * first)
    result = hessian(tmp_path / "c.ts", data)
    assert result.status == "converged"


def test_scripted_and_source_spectra_agree(
    net: Net, program: Path, data: Path, tmp_path: Path
) -> None:
    scripted = hessian(script(net, tmp_path / "n.pt"), data)
    exported = hessian(program, data)
    for one, other in zip(scripted.top, exported.top, strict=True):
        assert abs(one.value - other.value) <= one.residual + other.residual


def rewritten(program: Path, to: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """The archive with its entries changed; None drops one."""
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(to, "w") as new:
        for entry in old.infolist():
            content = change(entry.filename.partition("/")[2], old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content)
    return to


def test_named_inputs_of_a_program_go_where_they_belong(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            out: Tensor = self.layer(first) - second
            return out

    two = Two()
    first, second = torch.randn(2, 4), torch.randn(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.export.save(torch.export.export(two, (first, second)), tmp_path / "two.pt2")
    module = open_checkpoint(tmp_path / "two.pt2").program
    assert module is not None
    expected = two(first, second)
    torch.testing.assert_close(module(second=second, first=first), expected)
    torch.testing.assert_close(module(a=first, b=second), expected)
    # Exported without dynamic shapes, it takes two samples and no other number.
    np.savez(tmp_path / "d.npz", first=first.numpy(), second=second.numpy(), y=np.zeros(2, "i8"))
    result = hessian(tmp_path / "two.pt2", tmp_path / "d.npz")
    assert result.status == "converged"
    with pytest.raises(DataError, match="batches of 2 samples, and one has 1"):
        hessian(tmp_path / "two.pt2", tmp_path / "d.npz", batch_size=1)


_TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


class Bomb:
    """Unpickling it creates a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, (self.canary,)


def edited(path: list[Any], value: Any) -> Callable[[Any], None]:
    def edit(graph: Any) -> None:
        for key in path[:-1]:
            graph = graph[key]
        graph[path[-1]] = value

    return edit


NODE = ["graph_module", "graph", "nodes", 0]


@pytest.mark.parametrize(
    "edit",
    [
        edited([*NODE, "target"], "torch.serialization.os.mkdir"),
        edited([*NODE, "target"], "torch.hub.load"),
        edited([*NODE, "target"], "torch.ops.load_library"),
        edited([*NODE, "target"], "torch.ops.aten.from_file.default"),
        edited([*NODE, "target"], "_operator.methodcaller"),
        edited([*NODE, "target"], "#namespace:anything"),
        edited(["graph_module", "graph", "inputs", 0, "as_tensor", "name"], "x=__import__('os').mkdir('CANARY')"),
        edited([*NODE, "metadata", "nn_module_stack"], "a,body\").x;import os,torch.nn.Linear"),
        edited(["graph_module", "module_call_graph", 0, "signature", "in_spec"],
               '[1, {"type": "collections.defaultdict", "context": {"default_factory_module": "canary"}}]'),
        edited(["graph_module", "graph", "sym_int_values", "s0"],
               {"as_expr": {"expr_str": "__import__('os').mkdir('CANARY')", "hint": None}}),
    ],
)  # fmt: skip
def test_a_program_that_would_run_code_is_refused(
    edit: Callable[[Any], None], program: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"

    def change(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        graph = json.loads(content)
        edit(graph)
        return json.dumps(graph).replace("CANARY", str(canary)).encode()

    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(rewritten(program, tmp_path / "bad.pt2", change))
    assert "--unsafe-pickle" in (caught.value.hint or "")
    assert not canary.exists()


@pytest.mark.parametrize(
    "entry", ["data/sample_inputs/model.pt", "data/weights/weight_0", "opaque"]
)
def test_pickles_inside_a_program_do_not_run(entry: str, program: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bomb = io.BytesIO()
    torch.save(Bomb(canary), bomb)

    def change(name: str, content: bytes) -> bytes:
        if name == entry:
            return bomb.getvalue()
        if entry == "data/weights/weight_0" and name.endswith("weights_config.json"):
            return content.replace(b'"use_pickle": false', b'"use_pickle": true')
        if entry == "opaque" and name.endswith("constants_config.json"):
            meta = {
                "path_name": "opaque_obj_0",
                "is_param": False,
                "use_pickle": True,
                "tensor_meta": None,
            }
            return json.dumps({"config": {"c": meta}}).encode()
        return content

    bad = rewritten(program, tmp_path / "bad.pt2", change)
    if entry == "opaque":
        with zipfile.ZipFile(bad, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/data/constants/opaque_obj_0", pickle.dumps(Bomb(canary)))
    # Torch 2.8 reads neither opaque objects nor weights one by one: what lies there is left alone.
    new = importlib.util.find_spec("torch._library.opaque_object") is not None
    read = new or entry not in ("opaque", "data/weights/weight_0")
    with pytest.raises(CheckpointError) if read else contextlib.nullcontext():
        open_checkpoint(bad)
    assert not canary.exists()
    # Torch 2.11 refuses such an object by itself; later ones run what is in it.
    runs = entry == "data/sample_inputs/model.pt" or (entry == "opaque" and _TORCH >= (2, 13))
    if read and runs:  # the attack is real: with the flag it succeeds
        with contextlib.suppress(CheckpointError):
            open_checkpoint(bad, unsafe_pickle=True)
        assert canary.exists()


def test_compiled_code_in_a_program_is_never_loaded(program: Path, tmp_path: Path) -> None:
    bad = rewritten(program, tmp_path / "bad.pt2", lambda _, content: content)
    with zipfile.ZipFile(bad, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/data/aotinductor/model/x.so", b"\x7fELF")
    for unsafe in (False, True):
        with pytest.raises(CheckpointError, match="machine code"):
            open_checkpoint(bad, unsafe_pickle=unsafe)


def test_what_an_exporter_writes_as_an_expression() -> None:
    for fine in (
        "Mul(Integer(224), Symbol('s77', positive=True, integer=True))",
        "Pow(s0, Integer(2))",
        "s77",
        "Symbol('s77', positive=True, integer=True)",
        "2*s0 + 1",
        "s0**2",
        "Max(1, FloorDiv(s0, 2))",
    ):
        check_expression(fine, "f")
    for wrong in (
        "Pow(9, 9999999)", "Pow(Pow(2, s0), 3)",
        "__import__('os')", "s0.__class__", "9**9**9**9", "(lambda: 0)()", "[s0]", "", "s0 if s1 else 2",
        "Symbol('a').x",
    ):  # fmt: skip
        with pytest.raises(CheckpointError):
            check_expression(wrong, "f")


class Saves(nn.Module):
    """A TorchScript program that writes a file when it is called."""

    def __init__(self, canary: str) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.canary = canary

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.canary)
        out: Tensor = self.layer(x)
        return out


class SavesOnLoad(nn.Module):
    """A TorchScript program that writes a file while it is loaded."""

    def __init__(self, canary: str) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.canary = canary

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.canary, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.canary = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.canary)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


@pytest.mark.parametrize("kind", [Saves, SavesOnLoad])
def test_torchscript_that_writes_files_is_refused(
    kind: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    path = script(kind(str(canary)), tmp_path / "bad.ts")
    with pytest.raises(CheckpointError, match="save, which reaches outside"):
        open_checkpoint(path)
    assert not canary.exists()
    # The attack is real: with the flag it succeeds.
    with contextlib.suppress(CheckpointError):
        module = open_checkpoint(path, unsafe_pickle=True).program
        assert module is not None
        module(torch.zeros(1, 4))
    assert canary.exists()


def test_torchscript_code_is_read_for_ways_out() -> None:
    for fine in (
        b"def f(self, x):\n  return torch.add(x, ops.prim.min(1, 2))",
        b'a = getattr(self, "0")',
    ):
        check_code(fine, "f")
    for wrong in (
        b"torch.save(x, 'f')", b"g = torch.from_file", b"ops.aten.save(x, 'f')", b"ops.c10d.send(x)",
        b'getattr(torch, "save")', b"ops.prim.rpc_sync(1)", b"__torch__.torch.classes.a.B()", b"not code (",
    ):  # fmt: skip
        with pytest.raises(CheckpointError):
            check_code(wrong, "f")


def test_damage_ends_in_a_sentence(program: Path, net: Net, tmp_path: Path) -> None:
    scripted = script(net, tmp_path / "n.ts")
    for path in (program, scripted):
        whole = path.read_bytes()
        bad = tmp_path / f"bad{path.suffix}"
        bad.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CurvError):
            open_checkpoint(bad)
    bad = rewritten(
        program, tmp_path / "no_model.pt2", lambda n, c: None if n.startswith("models/") else c
    )
    with pytest.raises(CheckpointError):
        open_checkpoint(bad)
