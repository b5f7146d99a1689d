"""The loss of a Hugging Face directory is the model's own, over families of tiny models with random weights.

The references are the library's: ``model(**batch).loss`` in float64, and λ₁ by power iteration with double backward.
"""

import json
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
from curvcli.loading.models.huggingface import library
from curvcli.loading.models.own_loss import next_tokens
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


def written(family: Family, folder: Path) -> tuple[Any, Path, Path]:
    """The model with plain operations, its directory and its data."""
    torch.manual_seed(0)
    model = family.model(library()).eval()
    model.save_pretrained(folder / "model")
    np.savez(folder / "data.npz", **{k: v.numpy() for k, v in family.batch.items()})
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


def leading(model: Any, family: Family) -> float:
    """λ₁ by power iteration; on H + shift, so that the leading eigenvalue is that of the largest modulus."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    kept: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    gradient = torch.autograd.grad(own(model, family), parameters, create_graph=True, **kept)
    generator = torch.Generator().manual_seed(0)
    v = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    value, shift = 0.0, 0.0
    for _ in range(2000):
        norm = torch.stack([(x * x).sum() for x in v]).sum().sqrt()
        v = [x / norm for x in v]
        product = torch.autograd.grad(gradient, parameters, v, retain_graph=True, **kept)
        before, value = value, float(sum((a * b).sum() for a, b in zip(product, v, strict=True)))
        if abs(value - before) < 1e-9 * abs(value):
            if value > 0:
                break
            shift = -value
        v = [p + shift * x for p, x in zip(product, v, strict=True)]
    return value


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
    assert run.target.describe()["loss"] == "model"
    note = f"the loss is the model's own ({type(model).__name__}.loss)"
    assert note in answer.notes
    assert run.objective.weight == family.terms
    assert run.objective.splittable == family.additive
    if family.twice:
        found = leading(model, family)
        assert answer.result.top[0].value == pytest.approx(found, rel=2e-4)


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
    for memory in ("700MB", None):
        run = curvcli.load(str(directory), data=str(data), memory=memory)
        answer = curvcli.analyse("hessian", run, top=1, bottom=0)
        found.append(answer.result.top[0].value)
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert any("batches are evaluated whole" in note for note in answer.notes)


@pytest.mark.parametrize("name", ["gpt2", "bert-regression", "t5", "vit-multi"])
def test_gauss_newton_and_fisher_take_the_models_own_loss_apart(name: str, tmp_path: Path) -> None:
    """Products against J by forward differences of the model's outputs is costly: the gradients at its targets are not."""
    family = FAMILIES[name]
    model, directory, data = written(family, tmp_path)
    run = curvcli.load(str(directory), data=str(data))
    terms: Any = run.objective.terms
    batch = run.objective.batches[0].data
    outputs = terms.outputs(run.objective.model, batch)
    total, count = terms.of_outputs(outputs, batch)
    assert float(total) / count == pytest.approx(float(own(model, family)), rel=1e-5)
    for matrix in ("ggn", "fisher"):
        answer = curvcli.analyse("hessian", run, matrix=matrix, top=1, bottom=0)
        assert answer.result.top[0].value > 0


def test_a_loss_that_is_no_loss_of_the_outputs_says_what_to_pass(tmp_path: Path) -> None:
    _, directory, data = written(FAMILIES["clip"], tmp_path)
    run = curvcli.load(str(directory), data=str(data))
    with pytest.raises(LossError) as caught:
        curvcli.analyse("hessian", run, matrix="ggn", top=1, bottom=0)
    assert "cross_entropy" in str(caught.value.hint)


def test_tokens_without_labels_are_their_own_labels(tmp_path: Path) -> None:
    family = FAMILIES["gpt2"]
    model, directory, data = written(family, tmp_path)
    np.savez(data, input_ids=IDS.numpy(), attention_mask=MASK.numpy())
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
    arrays = {k: v.numpy() for k, v in family.batch.items()}
    labels = arrays.pop("labels")
    np.savez(data, **arrays, stars=labels.astype(np.int32))
    run = curvcli.load(str(directory), data=str(data), target_key="stars", loss=loss)
    assert run.objective.loss == pytest.approx(float(own(model, family)), rel=1e-5)
    with pytest.raises(DataError, match="takes no 'stars'"):
        _ = curvcli.load(str(directory), data=str(data)).objective
    np.savez(data, **arrays)
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
    arrays = {k: v.numpy().copy() for k, v in family.batch.items()}
    arrays["labels"][0] = -100
    np.savez(data, **arrays)
    objective = curvcli.load(str(directory), data=str(data)).objective
    labels = torch.from_numpy(arrays["labels"])
    expected = float(model(**{**family.batch, "labels": labels}).loss)
    assert objective.value(samples=1) == pytest.approx(expected, rel=1e-5)
    assert bool(torch.isfinite(objective.gradient(samples=1)).all())


def test_other_networks_have_no_own_loss() -> None:
    from curvcli.loading.loss import loss_terms

    with pytest.raises(LossError, match="Hugging Face directory"):
        loss_terms("model", {})
