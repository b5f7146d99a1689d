"""What is measured computes what the model computes after `load_state_dict`, whatever it keeps and in any file."""

import copy
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_saver import save
from torch.nn.utils import parametrizations, prune, spectral_norm

import curvcli
from curvcli.errors import ModelError
from curvcli.loading.models.model import build_model
from tests.objective.test_kinds import largest

KINDS = """
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm
class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 2), 1.0
    def get_extra_state(self): return {"scale": self.scale}
    def set_extra_state(self, state): self.scale = state["scale"]
    def forward(self, x): return self.layer(x) * self.scale
def net(first):
    torch.manual_seed(0)
    return nn.Sequential(first(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2))
def cut(layer): return prune.l1_unstructured(layer, "weight", amount=0.5)
def scaled(): return nn.Sequential(Scaled(), nn.Linear(2, 2))
def lazy(): return nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.LazyLinear(2))
def pruned(): return net(cut)
def old_spectral(): return net(spectral_norm)
def new_spectral(): return net(parametrizations.spectral_norm)
def orthogonal(): return net(parametrizations.orthogonal)
a_pruned, an_old_spectral, a_new_spectral, an_orthogonal = pruned(), old_spectral(), new_spectral(), orthogonal()
x, y = torch.linspace(-1, 1, 40).sin().view(10, 4), torch.arange(10) % 2
def data(): return x, y
"""
X, Y = torch.linspace(-1, 1, 40).sin().view(10, 4), torch.arange(10) % 2


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kinds.py").write_text(KINDS)
    return tmp_path


def plain_loss(model: nn.Module, data: Any) -> Tensor:
    return nn.functional.cross_entropy(model(data[0]), data[1])


@pytest.mark.parametrize(
    ("kind", "instance"),
    [
        ("pruned", "a_pruned"), ("old_spectral", "an_old_spectral"), ("new_spectral", "a_new_spectral"),
        ("orthogonal", "an_orthogonal"),
    ],
)  # fmt: skip
def test_parametrised_layers_as_factory_and_as_instance(
    place: Path, kind: str, instance: str
) -> None:
    """λ of both is that of double backward in float64 through the factory's own network."""
    torch.manual_seed(0)
    layer: dict[str, Callable[[Any], Any]] = {
        "pruned": lambda m: prune.l1_unstructured(m, "weight", amount=0.5),
        "old_spectral": spectral_norm, "new_spectral": parametrizations.spectral_norm,
        "orthogonal": parametrizations.orthogonal,
    }  # fmt: skip
    first = nn.Linear(4, 3)
    model = nn.Sequential(layer[kind](first), nn.Tanh(), nn.Linear(3, 2)).eval()
    model(X)
    double = pickled(model).double()
    truth = largest_of(double)
    for name in (kind, instance):
        subject = curvcli.load(
            model=f"kinds.py:{name}", data="kinds.py:data", loss="cross_entropy", dtype="float64"
        )
        answer = curvcli.analyse("hessian", subject, top=1, bottom=0, tol=1e-8)
        # The vectors of a spectral norm are float32 until they are cast.
        assert answer.result.top[0].value == pytest.approx(truth, rel=1e-5)


def pickled(model: nn.Module) -> Any:
    """A copy that knows nothing of computed weights: the hooks compute them again."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                setattr(module, name, value.detach())
    return copy.deepcopy(model)


def largest_of(model: nn.Module) -> float:
    parameters = list(model.parameters())
    loss = plain_loss(model, (X.double(), Y))
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    rows = [
        torch.cat(
            [g.reshape(-1) for g in torch.autograd.grad(entry, parameters, retain_graph=True)]
        )
        for entry in flat
    ]
    return float(torch.linalg.eigvalsh(torch.stack(rows))[-1])


def test_what_a_module_keeps_besides_tensors(place: Path) -> None:
    """`get_extra_state` goes into the file, and has to come out of it; without it the file does not fit."""
    model = build_model("kinds.py:scaled", {})
    model[0].scale = 3.0  # type: ignore[index]
    stored = model.state_dict()
    torch.save({"state_dict": {f"net.{n}": t for n, t in stored.items()}}, "w.pt")
    subject = curvcli.load(
        "w.pt", model="kinds.py:scaled", data="kinds.py:data", loss="cross_entropy"
    )
    assert subject.objective.loss == pytest.approx(plain_loss(model, (X, Y)).item(), rel=1e-6)
    save_file({n: t for n, t in stored.items() if isinstance(t, Tensor)}, "w.safetensors")
    with pytest.raises(ModelError, match=r"1 missing \('0\._extra_state'"):
        curvcli.load("w.safetensors", model="kinds.py:scaled", data="kinds.py:data").target.model  # noqa: B018


def test_lazy_layers_take_their_shapes_from_the_data(place: Path) -> None:
    model = build_model("kinds.py:lazy", {})
    model(X)
    torch.save(model.state_dict(), "w.pt")
    load: dict[str, Any] = {"model": "kinds.py:lazy", "data": "kinds.py:data", "dtype": "float64"}
    subject = curvcli.load("w.pt", loss="cross_entropy", **load)
    answer = curvcli.analyse("hessian", subject, top=1, bottom=0, tol=1e-8)
    truth = largest(model, plain_loss, (X.double(), Y))
    assert answer.result.top[0].value == pytest.approx(truth, rel=1e-6)
    assert any("lazy layers" in note for note in answer.notes)
    fresh = curvcli.load(loss="cross_entropy", **load)
    assert curvcli.analyse("hessian", fresh, top=1, bottom=0).complete


FORMS: dict[str, Callable[[dict[str, Tensor], Path], object]] = {
    "w.safetensors": save_file,
    "w.pt": lambda tensors, path: torch.save({"ema": tensors, "step": 3}, path),
    "w.ckpt": lambda tensors, path: torch.save(
        {"state_dict": {f"net.{n}": t for n, t in tensors.items()}}, path
    ),
    "w": lambda tensors, path: save({"model": tensors}, checkpoint_id=path, no_dist=True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn", "digits_lstm", "bytes_gpt"])
def test_what_is_measured_is_what_load_state_dict_gives(
    samples: Path, tmp_path: Path, name: str, form: str
) -> None:
    """One forward pass of the untouched network agrees to the last bit."""
    settings = tomllib.loads((samples / f"{name}.toml").read_text())
    tensors = load_file(samples / settings["checkpoint"])
    FORMS[form](tensors, tmp_path / form)
    reference = (
        f"{samples / settings['model'].rpartition(':')[0]}:{settings['model'].rpartition(':')[2]}"
    )
    arguments = settings.get("model-args", {})
    untouched = build_model(reference, arguments).eval()
    tied = {n for n in untouched.state_dict() if n not in tensors}
    assert tied <= {"head.weight"}
    untouched.load_state_dict(tensors, strict=False)
    subject = curvcli.load(str(samples / f"{name}.toml"), checkpoint=str(tmp_path / form))
    (arguments_in, keywords, _) = subject.target.model_batches[0].data
    with torch.no_grad():
        theirs = untouched(*arguments_in, **keywords)
        ours = subject.target.model.eval()(*arguments_in, **keywords)
    assert torch.equal(ours, theirs)
