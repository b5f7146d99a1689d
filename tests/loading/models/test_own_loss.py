"""The loss of a Hugging Face directory is the model's own, over families of tiny models with random weights.

The references are the library's: ``model(**batch).loss`` in float64, and λ₁ by double backward of it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import curvcli
from curvcli.cli.main import make_app
from curvcli.errors import DataError, LossError
from curvcli.loading.described import described
from curvcli.loading.models.huggingface import Directory, library
from curvcli.loading.models.own_loss import next_tokens
from curvcli.machine.device import used_memory
from tests.loading.models.families import FAMILIES, IDS, LABELS, MASK, Family

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
QUICK = (
    "gpt2", "mixtral", "bert-regression", "bert-pretraining", "bert-questions", "electra-pretraining", "t5", "clip",
    "wav2vec2-mean", "segformer",
)  # fmt: skip


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.savez(path, **arrays)


def written(family: Family, folder: Path) -> tuple[Any, Path, Path]:
    """The model with plain operations, its directory and its data."""
    torch.manual_seed(0)
    model = family.model(library()).eval()
    model.save_pretrained(folder / "model")
    save(folder / "data.npz", family.batch)
    model.set_attn_implementation("eager")
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    return model.double(), folder / "model", folder / "data.npz"


def own(model: Any, family: Family, samples: slice = slice(None)) -> Tensor:
    """``model(**batch).loss``."""
    batch = {k: v[samples] for k, v in family.batch.items()}
    batch = {k: v.double() if k in family.floats else v for k, v in batch.items()}
    loss: Tensor = model(**batch, **family.extra).loss
    return loss


def lanczos(product: Callable[[Tensor], Tensor], n: int) -> float:
    """The leading eigenvalue of a symmetric matrix, with full orthogonalisation against all vectors."""
    v = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = [v / v.norm()]
    for _ in range(min(n, 120)):
        w = product(basis[-1])
        stacked = torch.stack(basis)
        for _ in range(2):
            w = w - stacked.T @ (stacked @ w)
        if w.norm() < 1e-9:
            break
        basis.append(w / w.norm())
    stacked = torch.stack(basis)
    projected = stacked @ torch.stack([product(b) for b in basis], 1)
    return float(torch.linalg.eigvalsh((projected + projected.T) / 2)[-1])


def parameters_of(model: Any) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def back(outputs: Tensor, inputs: list[Tensor], seed: Tensor | None = None, **kept: Any) -> Tensor:
    """A flat gradient."""
    found = torch.autograd.grad(
        outputs, inputs, seed, retain_graph=True, allow_unused=True, materialize_grads=True, **kept
    )
    return torch.cat([g.reshape(-1) for g in found])


def leading(model: Any, family: Family) -> float:
    """λ₁ by double backward; by differences of gradients where torch does not differentiate twice."""
    parameters = parameters_of(model)
    gradient = back(own(model, family), parameters, create_graph=family.twice)
    if family.twice:
        return lanczos(lambda v: back(gradient, parameters, v), len(gradient))
    theta = torch.nn.utils.parameters_to_vector(parameters).detach()
    step = 1e-3

    def moved(v: Tensor) -> Tensor:
        torch.nn.utils.vector_to_parameters(theta + v, parameters)
        return back(own(model, family), parameters)

    return lanczos(lambda v: (moved(step * v) - moved(-step * v)) / (2 * step), len(theta))


def leading_gauss_newton(model: Any, family: Family) -> float:
    """λ₁ of Jᵀ (diag p − p pᵀ) J over the tokens that have a next one."""
    parameters = parameters_of(model)
    labels = family.batch["labels"]
    outputs = model(
        input_ids=family.batch["input_ids"], attention_mask=family.batch["attention_mask"]
    )
    z = outputs.logits[:, :-1][labels[:, 1:] != -100]
    p = z.detach().softmax(-1)
    seed = torch.zeros_like(z, requires_grad=True)
    pulled = back(z, parameters, seed, create_graph=True)

    def product(v: Tensor) -> Tensor:
        (pushed,) = torch.autograd.grad(pulled, seed, v, retain_graph=True)
        return back(z, parameters, p * (pushed - (p * pushed).sum(-1, keepdim=True)) / len(z))

    return lanczos(product, len(pulled))


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.full) for n in FAMILIES]
)
def test_loss_and_curvature_are_the_models_own(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model, directory, data = written(family, tmp_path)
    run = curvcli.load(str(directory), data=str(data))
    answer = curvcli.analyse("hessian", run, top=1, bottom=0)
    with torch.no_grad():
        expected = float(own(model, family))
    assert answer.result.loss == pytest.approx(expected, rel=1e-5)
    assert described(run.spec, run.target)["loss"] == "model"
    note = f"the loss is the model's own ({type(model).__name__}.loss)"
    assert note in answer.notes
    assert run.objective.weight == family.terms
    assert run.objective.splittable == family.additive
    found = leading(model, family)
    assert answer.result.top[0].value == pytest.approx(found, rel=2e-4 if family.twice else 2e-3)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n in QUICK])
def test_batches_of_unequal_size_are_weighted_by_their_terms(name: str, tmp_path: Path) -> None:
    """Three samples and one: the whole where the loss is a mean over its terms."""
    family = FAMILIES[name]
    model, directory, data = written(family, tmp_path)
    cut = curvcli.load(str(directory), data=str(data), batch_size=3).objective
    assert len(cut.batches) == 2
    with torch.no_grad():
        parts = [float(own(model, family, s)) for s in (slice(0, 3), slice(3, 4))]
        whole = float(own(model, family))
    if family.additive:
        assert cut.loss == pytest.approx(whole, rel=1e-5)
    else:
        assert min(parts) - 1e-5 <= cut.loss <= max(parts) + 1e-5


def test_a_batch_that_cannot_be_cut_has_one_curvature_whatever_the_memory(tmp_path: Path) -> None:
    _, directory, data = written(FAMILIES["clip"], tmp_path)
    found = []
    used = used_memory(torch.device("cpu"))
    for memory in (f"{used + 400_000_000}B", None):
        run = curvcli.load(str(directory), data=str(data), memory=memory)
        answer = curvcli.analyse("hessian", run, top=1, bottom=0)
        found.append(answer.result.top[0].value)
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert any("batches are evaluated whole" in note for note in answer.notes)


@pytest.mark.parametrize("name", ["gpt2", "bert-regression", "t5", "vit-multi"])
def test_gauss_newton_and_fisher_take_the_models_own_loss_apart(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model, directory, data = written(family, tmp_path)
    run = curvcli.load(str(directory), data=str(data))
    terms: Any = run.objective.terms
    batch = run.objective.batches[0].data
    outputs = terms.outputs(run.objective.model, batch)
    total, count = terms.of_outputs(outputs, batch)
    assert float(total) / count == pytest.approx(float(own(model, family)), rel=1e-5)
    answer = curvcli.analyse("hessian", run, matrix="ggn", top=1, bottom=0)
    if name == "gpt2":
        expected = leading_gauss_newton(model, family)
        assert answer.result.top[0].value == pytest.approx(expected, rel=2e-4)
    # In expectation over the drawn targets the Fisher matrix is the Gauss-Newton matrix, but for factors of squares.
    traces = [
        curvcli.analyse("trace", run, matrix=matrix).result.trace.value
        for matrix in ("ggn", "fisher")
    ]
    assert 0.5 < traces[0] / traces[1] < 2


def test_a_loss_that_is_no_loss_of_the_outputs_says_what_to_pass(tmp_path: Path) -> None:
    _, directory, data = written(FAMILIES["clip"], tmp_path)
    run = curvcli.load(str(directory), data=str(data))
    with pytest.raises(LossError) as caught:
        curvcli.analyse("hessian", run, matrix="ggn", top=1, bottom=0)
    assert "cross_entropy" in str(caught.value.hint)


def test_tokens_without_labels_are_their_own_labels(tmp_path: Path) -> None:
    family = FAMILIES["gpt2"]
    model, directory, data = written(family, tmp_path)
    save(data, {"input_ids": IDS, "attention_mask": MASK})
    objective = curvcli.load(str(directory), data=str(data)).objective
    assert torch.equal(objective.batches[0].data[2], LABELS)
    assert objective.loss == pytest.approx(float(own(model, family)), rel=1e-5)
    named = curvcli.load(str(directory), data=str(data), loss="token_cross_entropy").objective
    assert torch.equal(named.batches[0].data[2], next_tokens(LABELS))
    assert named.loss == pytest.approx(objective.loss, rel=1e-5)


def test_an_adapter_has_the_loss_of_its_model(tmp_path: Path) -> None:
    import peft

    family = FAMILIES["gpt2"]
    _, directory, data = written(family, tmp_path)
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM", init_lora_weights=False,
        base_model_name_or_path=str(directory),
    )  # fmt: skip
    base = library().GPT2LMHeadModel.from_pretrained(str(directory), attn_implementation="eager")
    model = peft.get_peft_model(base, config)
    model.save_pretrained(str(tmp_path / "lora"))
    run = curvcli.load(str(tmp_path / "lora"), data=str(data))
    answer = curvcli.analyse("hessian", run, top=1, bottom=0)
    model = model.double().eval()
    assert answer.result.loss == pytest.approx(float(own(model, family)), rel=1e-5)
    assert answer.result.top[0].value == pytest.approx(leading(model, family), rel=2e-4)
    assert "the loss is the model's own (GPT2LMHeadModel.loss)" in answer.notes


@pytest.mark.parametrize("loss", [None, "model", "output"])
def test_names_of_labels_and_of_the_loss(loss: str | None, tmp_path: Path) -> None:
    family = FAMILIES["bert-classes"]
    model, directory, data = written(family, tmp_path)
    inputs = {k: v for k, v in family.batch.items() if k != "labels"}
    save(data, {**inputs, "stars": family.batch["labels"].int()})
    run = curvcli.load(str(directory), data=str(data), target_key="stars", loss=loss)
    assert run.objective.loss == pytest.approx(float(own(model, family)), rel=1e-5)
    with pytest.raises(DataError, match="takes no 'stars'"):
        _ = curvcli.load(str(directory), data=str(data)).objective
    save(data, inputs)
    with pytest.raises(DataError, match="computes its loss from 'labels', and the data has none"):
        _ = curvcli.load(str(directory), data=str(data)).objective


def test_a_model_without_a_head_asks_for_a_loss(tmp_path: Path) -> None:
    family = FAMILIES["bert-classes"]
    _, directory, data = written(family, tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    command = ["hessian", str(directory), "--data", str(data), "--allow-partial"]
    done = CliRunner().invoke(make_app(), command)
    assert done.exit_code == 2
    assert "BertModel has no loss of its own" in done.stderr
    assert "--loss" in done.stderr


def test_a_piece_in_which_nothing_counts_has_no_terms(tmp_path: Path) -> None:
    family = FAMILIES["gpt2"]
    model, directory, data = written(family, tmp_path)
    labels = family.batch["labels"].clone()
    labels[0] = -100
    batch = {**family.batch, "labels": labels}
    save(data, batch)
    objective = curvcli.load(str(directory), data=str(data)).objective
    expected = float(model(**batch).loss)
    assert objective.value(samples=1) == pytest.approx(expected, rel=1e-5)
    assert bool(torch.isfinite(objective.gradient(samples=1)).all())


def test_other_networks_have_no_own_loss() -> None:
    from curvcli.loading.loss import loss_terms

    with pytest.raises(LossError, match="Hugging Face directory"):
        loss_terms("model", {})


@pytest.mark.parametrize(
    ("architecture", "task", "loss"),
    [
        ("BertForPreTraining", "masked", "token_cross_entropy"),  # text has no pairs of sentences
        ("ElectraForPreTraining", "other", "model"),
        ("XLNetLMHeadModel", "other", "model"),
        ("GPT2LMHeadModel", "causal", "model"),
    ],
)
def test_what_text_is_to_a_model(architecture: str, task: str, loss: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    directory = Directory(tmp_path)
    assert directory.task == task
    assert directory.loss(text=True) == loss
    assert directory.loss() == "model"
