"""Files from strangers run nothing and print nothing that a terminal or a CI system would obey.

Every attack leaves a canary where it succeeds; those that PyTorch itself would carry out are first shown to do so.
"""

import json
import re
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from curvcli.errors import CheckpointError, printable
from curvcli.loading.checkpoints.formats import open_checkpoint
from curvcli.loading.checkpoints.program_check import check_expression, check_structure
from curvcli.loading.checkpoints.script_check import check_code
from tests.loading.checkpoints.test_exported import script

Entries = dict[str, bytes]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("honest") / "net.pt2"
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = ({0: torch.export.Dim("n")},)
        made = torch.export.export(net, (torch.ones(5, 4),), dynamic_shapes=dynamic)
        torch.export.save(made, path, extra_files={"readme.txt": "hello"})
    return path


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        print("\x1b[2Jx", "::error::y\n##[error]z")
        out: Tensor = self.layer(x)
        return out


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return script(Layer(), tmp_path_factory.mktemp("honest") / "net.ts")


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "an input made code run"


def rewritten(source: Path, to: Path, change: Callable[[Entries], None]) -> Path:
    """The archive with its entries changed; names are without the folder they lie in."""
    with zipfile.ZipFile(source) as old:
        root = old.namelist()[0].partition("/")[0]
        entries = {n.partition("/")[2]: old.read(n) for n in old.namelist()}
    change(entries)
    with zipfile.ZipFile(to, "w") as new:
        for name, content in entries.items():
            new.writestr(f"{root}/{name}", content)
    return to


def running(canary: Path) -> bytes:
    """A graph whose expression would make a folder."""
    text = f"__import__('os').mkdir('{canary}')"
    return json.dumps({"graph_module": {"graph": {"expr_str": text}}}).encode()


def test_honest_programs_are_opened(program: Path, scripted: Path) -> None:
    """What torch.export and torch.jit write passes, extra files too."""
    for path in (program, scripted):
        assert len(open_checkpoint(path).tensors) >= 2


@pytest.mark.parametrize(
    "name",
    [
        "models/model.xxxx", "models/other.json", "models/model.JSON", "Models/model.json", "models/model.json/x",
        "models/mo\u0064el\u0301.json", "data/weights/Model_weights_config.json", "data/weights/model.PT",
        "data/sample_inputs/MODEL.pt", "data/constants/anything", "data/aotinductor2/x.so", "xl_model_weights/x",
        "data/executorch/model.pte", "extra/\u0065\u0301",
    ],
)  # fmt: skip
def test_an_entry_that_no_exporter_writes_is_refused(
    name: str, program: Path, tmp_path: Path, canary: Path
) -> None:
    """Names are held against a list, whatever their case or Unicode form, before PyTorch reads them."""
    bad = rewritten(program, tmp_path / "bad.pt2", lambda e: e.update({name: running(canary)}))
    with pytest.raises(CheckpointError, match=r"no exporter writes|differ by case"):
        open_checkpoint(bad)


def test_a_graph_under_another_ending_does_not_run(
    program: Path, tmp_path: Path, canary: Path
) -> None:
    """PyTorch takes five characters for the ending of a graph, whatever they are."""

    def hide(entries: Entries) -> None:
        graph = entries["models/model.json"].decode()
        attack = f"__import__('os').mkdir('{canary}')"
        graph = re.sub(r"Symbol\('\w+', positive=True, integer=True\)", attack, graph)
        entries["models/model.xxxx"] = graph.encode()

    bad = rewritten(program, tmp_path / "bad.pt2", hide)
    with pytest.raises(CheckpointError):
        open_checkpoint(bad)
    assert not canary.exists()
    with pytest.raises(CheckpointError):  # the attack is real: with the flag it succeeds
        open_checkpoint(bad, unsafe_pickle=True)
    assert canary.exists()
    canary.rmdir()


@pytest.mark.parametrize(
    "node",
    [
        '{"type": "collections.defaultdict", "context": {"default\\u005ffactory_module": "NAME", '
        '"default_factory_name": "x", "dict_context": []}, "children_spec": []}',
        '{"type": "builtins.dict", "context": "[{\\"__enum__\\": true, \\"fqn\\": \\"NAME:x\\"}]", '
        '"children_spec": []}',
        '{"type": "builtins.dict", "context": "[{\\"\\\\u005f_enum__\\": true, \\"fqn\\": \\"NAME:x\\"}]", '
        '"children_spec": []}',
        '{"type": "builtins.tuple", "context": "null", "children_spec": [{"type": "collections.defaultdict", '
        '"context": {"default_factory_module": "NAME"}, "children_spec": []}]}',
        '{"type": "os.system", "context": "null", "children_spec": []}', "[]", "3",
    ],
)  # fmt: skip
def test_a_structure_imports_nothing(
    node: str, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canary: Path
) -> None:
    """The nesting of inputs and outputs is parsed; a letter written as an escape hides nothing."""
    (tmp_path / "stranger_module.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = f"[1, {node.replace('NAME', 'stranger_module')}]"
    with pytest.raises(CheckpointError):
        check_structure(text, "f")

    def nest(entries: Entries) -> None:
        graph = json.loads(entries["models/model.json"])
        graph["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = text
        entries["models/model.json"] = json.dumps(graph).encode()

    with pytest.raises(CheckpointError, match="plain containers"):
        open_checkpoint(rewritten(program, tmp_path / "bad.pt2", nest))


def test_plain_containers_of_inputs_are_taken() -> None:
    """Tuples, lists, dictionaries by key, and a model's named outputs."""
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    for kind, context in (
        ("builtins.tuple", "null"), ("builtins.dict", '["a", 3]'), ("collections.deque", "4"),
        ("collections.namedtuple", "my.Pair"), ("transformers.modeling_outputs.BaseModelOutput", '["logits"]'),
    ):  # fmt: skip
        check_structure(
            json.dumps([1, {"type": kind, "context": context, "children_spec": [leaf]}]), "f"
        )


@pytest.mark.parametrize(
    "text",
    [
        "evilSymbol('s0')", "Symbol('s0').x", "Symbol(s0)", "Symbol('__import__')('os')", "Symbol('s0', positive='x')",
        "Float('nan(x)')", "Float('0.5', precision=s0)", "Symbol('s', **x)", "s0 and __import__('os')", "f's0'",
        "Integer('1')", "x__class__", "eval(s0)", "s0[0]", "'a'*9", "Ｓymbol('s0')", "Symbol('é')", "s0 if s1 else 1",
        "Pow(2, Pow(2, 9))", "(s0 := 3)", "1j", "...", "None", "lambda: 0", "Symbol('s0', 's1')",
    ],
)  # fmt: skip
def test_expressions_are_read_by_their_nodes(text: str) -> None:
    """Anything but known functions of symbols and numbers is refused."""
    with pytest.raises(CheckpointError, match="plain arithmetic"):
        check_expression(text, "f")


def test_expressions_as_the_exporter_prints_them() -> None:
    """The forms of sympy's own printer pass."""
    for fine in (
        "Mul(Rational(1, 2), Symbol('s77', positive=True, integer=True))", "Float('0.5', precision=53)",
        "Equality(Symbol('u0', integer=True), Integer(3))", "Add(Integer(-1), Symbol('s0', integer=True))",
    ):  # fmt: skip
        check_expression(fine, "f")


@pytest.mark.parametrize(
    "alias", ["t = torch\n    t", "t = ops\n    t.aten", "t = ops.aten\n    t"]
)
def test_torchscript_gives_what_writes_files_no_other_name(
    alias: str, scripted: Path, tmp_path: Path, canary: Path
) -> None:
    """A namespace that is passed on under another name is refused; PyTorch would follow it."""

    def insert(entries: Entries) -> None:
        name = next(n for n in entries if n.endswith("test_strangers.py"))
        code = entries[name].decode()
        place = code.index("-> Tensor:\n") + len("-> Tensor:\n")
        code = f"{code[:place]}    {alias}.save(x, '{canary}')\n{code[place:]}"
        entries[name] = code.encode()

    bad = rewritten(scripted, tmp_path / "bad.ts", insert)
    with pytest.raises(CheckpointError, match="reaches outside"):
        open_checkpoint(bad)
    module = open_checkpoint(bad, unsafe_pickle=True).program
    assert module is not None
    module(torch.zeros(1, 4))
    assert canary.exists()  # the attack is real
    canary.unlink()


@pytest.mark.parametrize(
    "name",
    [
        "code/__torch__.PY", "code/__torch__.py.DEBUG_PKL", "CODE/__torch__.py", "code/a.so", "code/../x.py",
        "model.json", "code/\u0061\u0301.py", "bytecode.pkl", "attributes.pkl", "data.PKL", "data/x",
    ],
)  # fmt: skip
def test_an_entry_that_torchscript_does_not_write_is_refused(
    name: str, scripted: Path, tmp_path: Path
) -> None:
    """Only code, constants and tensors, by the very names that torch.jit.save gives them."""
    bad = rewritten(scripted, tmp_path / "bad.ts", lambda e: e.update({name: b"x = 1\n"}))
    with pytest.raises(CheckpointError):
        open_checkpoint(bad)


def test_code_under_another_case_does_not_run(scripted: Path, tmp_path: Path, canary: Path) -> None:
    """PyTorch would find ``.PY`` where it looks for ``.py``."""

    def recase(entries: Entries) -> None:
        for name in [n for n in entries if n.endswith(".py")]:
            entries[name[:-3] + ".PY"] = entries.pop(name)

    bad = rewritten(scripted, tmp_path / "bad.ts", recase)
    assert open_checkpoint(bad, unsafe_pickle=True).program is not None
    with pytest.raises(CheckpointError, match="no exporter writes"):
        open_checkpoint(bad)


@pytest.mark.parametrize(
    "source",
    [
        b"# -*- coding: utf-7 -*-\nx = 1\n", b"\n# vim: set fileencoding=latin-1 :\nx = 1\n", b"x = '\xff'\n",
        b"\xef\xbb\xbfx = 1\n", b"x = 1 # a\r torch.save(x, 'f')\n", b"x = 1\x0c\n", "x = 1 # \u2028\n".encode(),
    ],
)  # fmt: skip
def test_code_that_two_readers_could_read_differently_is_refused(source: bytes) -> None:
    """Strict UTF-8, no declared encoding, no characters that end a line in one language only."""
    with pytest.raises(CheckpointError, match="not TorchScript code"):
        check_code(source, "f")


@pytest.mark.parametrize(
    "source",
    [
        b"t = torch", b"f(torch)", b"g = getattr", b'getattr(x, "save", "y")', b"getattr(x, name)", b"a.b.save(x, 'f')",
        b"X = __torch__.torch", b"X = __torch__", b"x.from_file('f')", b"a = [ops]", b"torch._print('x')",
        b"x.rpc_async()",
    ],
)  # fmt: skip
def test_ways_out_of_tensors_have_no_second_name(source: bytes) -> None:
    """Operators that reach files are refused on whatever they are called."""
    with pytest.raises(CheckpointError, match="reaches outside"):
        check_code(source, "f")


@pytest.mark.parametrize(
    "globe",
    [
        b"__torch__.torch.classes.quantized\nLinearPackedParamsBase\n",
        b"__torch__.torch\nclasses.dist_rpc.WorkerInfo\n",
    ],
)
def test_native_objects_in_a_pickle_are_refused(
    globe: bytes, scripted: Path, tmp_path: Path
) -> None:
    """A class in C++ has a constructor of its own, which the code does not show."""
    content = b"\x80\x02c" + globe + b"."
    bad = rewritten(scripted, tmp_path / "bad.ts", lambda e: e.update({"data.pkl": content}))
    with pytest.raises(CheckpointError, match="native object"):
        open_checkpoint(bad)


def test_what_a_program_prints_is_harmless(
    scripted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No escape sequence reaches the terminal, and no line that a CI system takes for a command."""
    module: Any = open_checkpoint(scripted).program
    module(torch.zeros(1, 4))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "\x1b" not in shown.err
    assert "##[" not in shown.err
    assert all(line.startswith("the program prints: ") for line in shown.err.splitlines())
    assert printable("::error::x").startswith("\\x3a")
    assert "##[" not in printable("a ##[b]")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_unicode_forms_of_an_entry(
    form: Literal["NFC", "NFD"], program: Path, tmp_path: Path
) -> None:
    """Composed and decomposed forms of one name are both refused."""
    name = unicodedata.normalize(form, "extra/\u00e9")
    bad = rewritten(program, tmp_path / "bad.pt2", lambda e: e.update({name: b""}))
    with pytest.raises(CheckpointError, match="no exporter writes"):
        open_checkpoint(bad)
