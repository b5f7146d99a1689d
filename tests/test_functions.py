"""The questions as functions of live objects: the figures of files, a model that is left alone, answers that travel."""

import copy
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.sparse.linalg import eigsh
from torch import nn
from torch.nn import functional as F

import curvcli
from curvcli.errors import CurvError, UsageError
from tests.oracles.mixture import dense
from tests.oracles.samples import X50, Y50, small

# Double backward of the same loss, another order of sums.
_EXACT = 1e-9
_LOSSES = [
    "cross_entropy",
    F.cross_entropy,
    nn.CrossEntropyLoss(),
    lambda out, y: F.cross_entropy(out, y, reduction="none"),
]


def truth(model: nn.Module) -> torch.Tensor:
    """Dense eigenvalues, largest first."""
    exact = copy.deepcopy(model).double()
    parameters = list(exact.parameters())
    loss = F.cross_entropy(exact(X50.double()), Y50)
    values: torch.Tensor = torch.linalg.eigvalsh(dense(loss, parameters))
    return values.flip(0)


@pytest.mark.parametrize("loss", _LOSSES)
def test_every_form_of_a_loss_is_that_loss(loss: str | Callable[..., Any]) -> None:
    """Name, function, module, lambda: the dense eigenvalues."""
    model = small()
    answer = curvcli.hessian(model, loss, (X50, Y50), top=2, bottom=1, dtype="float64", tol=1e-9)
    found = [p.value for p in answer.result.top]
    assert np.allclose(found, truth(model)[:2].numpy(), rtol=_EXACT)


def test_a_weighted_module_and_an_objective() -> None:
    """Class weights travel with the module; an objective gets (model, batch)."""
    weight = torch.tensor([1.0, 2.0, 5.0])
    model = small()
    data = [(X50[:20], Y50[:20]), (X50[20:], Y50[20:])]
    module = curvcli.hessian(model, nn.CrossEntropyLoss(weight=weight), [(X50, Y50)], top=1)
    flags = curvcli.hessian(model, "cross_entropy", [(X50, Y50)], top=1, loss_args={"weight": [1, 2, 5]})  # fmt: skip
    assert module.result.top[0].value == pytest.approx(flags.result.top[0].value, rel=1e-6)
    plain = curvcli.hessian(model, "cross_entropy", data, top=1).result.top[0].value
    own = curvcli.hessian(
        model, None, data, objective=lambda m, b: F.cross_entropy(m(b[0]), b[1]), top=1
    )
    assert own.result.top[0].value == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("density", {}), ("trace", {}), ("saddle", {}), ("taylor", {}), ("step", {}), ("backprop", {}),
        ("gradients", {}), ("lr", {"steps": 10}), ("landscape", {"norm_statistics": "recompute"}),
        ("sharpness", {"draws": 2}),
    ],
)  # fmt: skip
def test_every_function_answers_and_leaves_the_model_alone(name: str, options: Any) -> None:
    """Weights, buffers, gradients, mode, flags, hooks and the random state are the same to the bit."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    model.train()
    F.cross_entropy(model(X50), Y50).backward()
    called: list[int] = []
    model[0].register_forward_hook(lambda *_: called.append(1))
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    random = torch.get_rng_state()
    answer = getattr(curvcli, name)(model, "cross_entropy", (X50, Y50), **options)
    assert answer.headline is not None
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), random)


def test_a_model_of_transformers_brings_its_own_loss() -> None:
    """Labels are shifted by the model itself; λ against double backward of its own loss."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=2, attn_implementation="eager",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    tokens = torch.randint(11, (3, 6))
    answer = curvcli.hessian(
        model,
        None,
        {"input_ids": tokens, "labels": tokens},
        top=1,
        bottom=0,
        dtype="float64",
        tol=1e-8,
    )
    assert any("model's own" in note for note in answer.notes)
    exact = copy.deepcopy(model).double()
    value = exact(input_ids=tokens, labels=tokens).loss
    assert answer.result.loss == pytest.approx(float(value.detach()), rel=1e-6)
    largest = torch.linalg.eigvalsh(dense(value, list(exact.parameters())))[-1]
    # The loss is computed in float32 by the model itself.
    assert answer.result.top[0].value == pytest.approx(float(largest), rel=1e-3)


def test_the_jacobian_needs_no_loss() -> None:
    """Singular values of a linear layer's weight, by NumPy."""
    layer = nn.Linear(4, 3)
    found = curvcli.jacobian(layer, X50[:2]).result.samples[0]
    values = np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)
    assert [v.value for v in found.singular_values] == pytest.approx(values.tolist(), rel=1e-5)


def test_eigenvectors_have_the_names_of_the_parameters(tmp_path: Path) -> None:
    """H v = λ v by double backward; the file has the same tensors."""
    model, path = small(), tmp_path / "v.safetensors"
    answer = curvcli.hessian(
        model, "cross_entropy", (X50, Y50), top=2, bottom=0, dtype="float64", tol=1e-10,
        save_vectors=str(path),
    )  # fmt: skip
    assert list(answer.vectors) == [name for name, _ in model.named_parameters()]
    v_N = torch.cat([v[0].reshape(-1) for v in answer.vectors.values()])
    exact = copy.deepcopy(model).double()
    hessian_NN = dense(F.cross_entropy(exact(X50.double()), Y50), list(exact.parameters()))
    value = answer.result.top[0].value
    assert torch.allclose(hessian_NN @ v_N, value * v_N, atol=1e-6 * value)
    saved = load_file(path)
    assert all(torch.equal(saved[name], v) for name, v in answer.vectors.items())


def test_an_answer_is_saved_and_read(tmp_path: Path) -> None:
    """Everything but the vectors; another file is refused with a sentence."""
    answer = curvcli.saddle(small(), "cross_entropy", (X50, Y50))
    answer.save(tmp_path / "a.json")
    again = curvcli.read_answer(tmp_path / "a.json")
    assert again.result == answer.result
    assert again.headline == answer.headline
    assert again.to_dict() == answer.to_dict()
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(CurvError, match="not a saved answer"):
        curvcli.read_answer(tmp_path / "b.json")


def test_a_notebook_shows_verdict_and_tables() -> None:
    """As the page; names from models are escaped."""
    model = nn.Sequential()
    model.add_module("<script>alert(1)<", nn.Linear(4, 3))
    shown = curvcli.gradients(model, "cross_entropy", (X50, Y50))._repr_html_()
    assert 'class="headline' in shown
    assert "<table" in shown
    assert "<script" not in shown


def test_a_notebook_shows_how_far_a_run_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is drawn again in its place and empty at the end; none without a kernel, or with a journal."""
    drawn = list[str]()

    class Handle:
        def update(self, told: dict[str, str], raw: bool) -> None:
            drawn.append(told["text/plain"])

    def display(told: dict[str, str], raw: bool, display_id: bool) -> Handle:
        drawn.append(told["text/plain"])
        return Handle()

    shell, now = SimpleNamespace(kernel=None), itertools.count()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr("curvcli.notebook.time", SimpleNamespace(monotonic=lambda: next(now)))
    curvcli.hessian(small(), "cross_entropy", (X50, Y50), top=1)
    assert any(text.startswith("products ") for text in drawn)
    assert drawn[-1] == ""
    drawn.clear()
    curvcli.hessian(small(), "cross_entropy", (X50, Y50), top=1, journal=curvcli.Journal())
    del shell.kernel
    curvcli.hessian(small(), "cross_entropy", (X50, Y50), top=1)
    assert not drawn


def test_tables_for_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers and errors in columns of their own, states as text; without pandas a sentence says what to install."""
    from curvcli.report.data import Bar, Column, Measured, State, Table
    from curvcli.report.sheet import columns_of

    table = Table(
        "t", (Column("λ ± residual"), Column("n"), Column("converged"), Column("")),
        [(Measured(1.0, 0.5), 3, State("yes", "good"), Bar(0.5)), (None, 4, None, Bar(1.0))],
    )  # fmt: skip
    assert columns_of(table) == {
        "λ": [1.0, None], "residual": [0.5, None], "n": [3, 4], "converged": ["yes", None],
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pandas"):
        curvcli.hessian(small(), "cross_entropy", (X50, Y50), top=1).to_frame()


def test_rules_over_a_live_model() -> None:
    """A rule that holds, one that does not, and the default ones."""
    model, largest = small(), float(truth(small())[0])
    rules = [f"hessian.top[0].value < {1.1 * largest}", f"hessian.top[0].value > {1.1 * largest}"]
    found = curvcli.check(model, "cross_entropy", (X50, Y50), rules=rules).result
    assert [r.decision for r in found.targets[0].rules] == ["pass", "violation"]
    batches = iter([(X50[:20], Y50[:20]), (X50[20:], Y50[20:])])
    assert curvcli.check(model, "cross_entropy", batches).result.healthy


def test_operators_for_scipy() -> None:
    """ARPACK on our products against a dense matrix."""
    model = small().double()
    subject = curvcli.inspect(model, "cross_entropy", (X50.double(), Y50))
    operator = curvcli.Hessian(subject.objective)
    values = eigsh(curvcli.as_linear_operator(operator), k=2, which="LA", return_eigenvectors=False)
    assert np.allclose(sorted(values)[::-1], truth(model)[:2].numpy(), rtol=_EXACT)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: curvcli.hessian(small(), "cross_entropy", (X50, Y50), tops=3), "no setting 'tops'"),
        (lambda: curvcli.hessian(small(), "cross_entropi", (X50, Y50)), "no loss 'cross_entropi'"),
        (lambda: curvcli.hessian(small(), None, (X50, Y50)), "no loss is given"),
        (lambda: curvcli.hessian(small(), "cross_entropy"), "data"),
    ],
)  # fmt: skip
def test_wrong_input_gets_the_sentence_that_helps(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(CurvError, match=words):
        call()
