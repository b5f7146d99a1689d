"""Tiny models of the families of Hugging Face directories, each with a batch and what holds of its loss."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

WORDS, IGNORED = 40, -100


def numbers(rows: int, columns: int, seed: int, below: int = WORDS) -> Tensor:
    """Random tokens, none of them special."""
    return torch.randint(4, below, (rows, columns), generator=torch.Generator().manual_seed(seed))


def normal(*shape: int) -> Tensor:
    """Random floats."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


IDS = numbers(4, 10, 0)
MASK = torch.ones_like(IDS)
MASK[1, 7:] = 0
MASK[3, 5:] = 0
LABELS = torch.where(MASK != 0, IDS, IGNORED)
_CHOSEN = torch.rand(4, 10, generator=torch.Generator().manual_seed(3)) < 0.4
_HIDDEN = torch.where(_CHOSEN, IDS, IGNORED)
_CLASSES = torch.tensor([0, 1, 2, 1])
_SEVERAL = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 1], [1, 1, 1]])
_WRITTEN = numbers(4, 6, 5)
_WRITTEN[1, 4:] = IGNORED
_WRITTEN[2, 2:] = IGNORED
_SPOKEN = numbers(4, 5, 7, 12)
_SPOKEN[1, 3:] = IGNORED
_SPOKEN[2, 2:] = IGNORED
_MAP = torch.randint(0, 3, (4, 32, 32), generator=torch.Generator().manual_seed(2))
_MAP[1, :9] = 255
_MAP[2, :, 5:] = 255
_TEXT = {"input_ids": IDS, "attention_mask": MASK}
_SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
_ENCODER: dict[str, Any] = {"vocab_size": WORDS, "max_position_embeddings": 32, **_SIZES}
_DECODER: dict[str, Any] = {
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **_ENCODER,
}  # fmt: skip
_PAIR: dict[str, Any] = {
    "vocab_size": WORDS, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 2,
}  # fmt: skip
_XLNET: dict[str, Any] = {
    "vocab_size": WORDS, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32,
}  # fmt: skip
_VIT: dict[str, Any] = {"image_size": 16, "patch_size": 8, **_SIZES}
_SPEECH: dict[str, Any] = {
    "vocab_size": 12, "conv_dim": (8, 8), "conv_stride": (4, 4), "conv_kernel": (8, 4), "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2, "pad_token_id": 0, "mask_time_prob": 0.0,
    "layerdrop": 0.0, **_SIZES,
}  # fmt: skip
SPOKEN_TERMS = float((_SPOKEN != IGNORED).sum())
"""Labels of a CTC loss."""


@dataclass(frozen=True)
class Family:
    """A model, a batch and what holds of its loss.

    Args:
        model: made with the library given.
        batch: inputs and labels by the names of the forward.
        terms: what the loss is a mean of.
        additive: whether the loss of a batch is the mean over its pieces.
        twice: whether torch differentiates the loss twice.
        extra: arguments without which the model computes no loss.
        floats: entries of the batch that the model takes as floats.
    """

    model: Callable[[Any], Any]
    batch: dict[str, Tensor]
    terms: float
    additive: bool = True
    twice: bool = True
    extra: dict[str, Any] = field(default_factory=dict)
    floats: tuple[str, ...] = ("pixel_values", "input_values", "input_features")


def _causal(name: str, additive: bool = True, **settings: Any) -> Family:
    def model(tf: Any) -> Any:
        return getattr(tf, f"{name}ForCausalLM")(getattr(tf, f"{name}Config")(**settings))

    return Family(
        model, {**_TEXT, "labels": LABELS}, float((LABELS[:, 1:] != IGNORED).sum()), additive
    )


def _of(name: str, config: str, batch: dict[str, Tensor], terms: float, **settings: Any) -> Family:
    own = {k: settings.pop(k) for k in ("additive", "twice", "extra", "floats") if k in settings}
    return Family(
        lambda tf: getattr(tf, name)(getattr(tf, config)(**settings)), batch, terms, **own
    )


def _words(name: str, config: str, labels: Tensor, **settings: Any) -> Family:
    terms = float((labels != IGNORED).sum())
    return _of(name, config, {**_TEXT, "labels": labels}, terms, **settings)


FAMILIES: dict[str, Family] = {
    "gpt2": _of(
        "GPT2LMHeadModel", "GPT2Config", {**_TEXT, "labels": LABELS}, 28.0,
        vocab_size=WORDS, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1,
    ),
    "opt": _causal(
        "OPT", vocab_size=WORDS, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, word_embed_proj_dim=16,
    ),
    "llama": _causal("Llama", **_DECODER),
    "qwen2": _causal("Qwen2", **_DECODER),
    "gemma2": _causal("Gemma2", **_DECODER),
    "mistral": _causal("Mistral", **_DECODER),
    "mixtral": _causal(
        "Mixtral", False, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=0.1, **_DECODER
    ),
    "mixtral-plain": _causal("Mixtral", num_local_experts=4, **_DECODER),
    "qwen2-moe": _causal(
        "Qwen2Moe", False, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        output_router_logits=True, num_experts_per_tok=2, **_DECODER,
    ),
    "mamba": _of(
        "MambaForCausalLM", "MambaConfig", {"input_ids": IDS, "labels": IDS}, 36.0,
        vocab_size=WORDS, hidden_size=16, state_size=4, num_hidden_layers=2, time_step_rank=2,
    ),
    "bert-masked": _words("BertForMaskedLM", "BertConfig", _HIDDEN, **_ENCODER),
    "bert-classes": _words("BertForSequenceClassification", "BertConfig", _CLASSES, num_labels=3, **_ENCODER),
    "bert-regression": _words(
        "BertForSequenceClassification", "BertConfig", torch.tensor([0.1, 0.5, -1.0, 2.0]), num_labels=1,
        floats=("labels",), **_ENCODER,
    ),
    "bert-pretraining": _of(
        "BertForPreTraining", "BertConfig",
        {**_TEXT, "labels": _HIDDEN, "next_sentence_label": _CLASSES % 2}, 4.0, additive=False, **_ENCODER,
    ),
    "bert-questions": _of(
        "BertForQuestionAnswering", "BertConfig",
        {**_TEXT, "start_positions": _CLASSES, "end_positions": _CLASSES + 2}, 4.0, **_ENCODER,
    ),
    "roberta": _words("RobertaForMaskedLM", "RobertaConfig", _HIDDEN, **_ENCODER),
    "distilbert": _words(
        "DistilBertForTokenClassification", "DistilBertConfig", torch.where(MASK != 0, IDS % 5, IGNORED),
        vocab_size=WORDS, dim=16, hidden_dim=32, n_layers=2, n_heads=2, max_position_embeddings=32, num_labels=5,
    ),
    "electra-pretraining": _of(
        "ElectraForPreTraining", "ElectraConfig", {**_TEXT, "labels": IDS % 2}, float(MASK.sum()),
        embedding_size=16, **_ENCODER,
    ),
    "electra": _words(
        "ElectraForSequenceClassification", "ElectraConfig", _CLASSES, embedding_size=16, num_labels=3, **_ENCODER
    ),
    "xlnet": _words("XLNetLMHeadModel", "XLNetConfig", LABELS, **_XLNET),
    "xlnet-classes": _words("XLNetForSequenceClassification", "XLNetConfig", _CLASSES, num_labels=3, **_XLNET),
    "t5": _words(
        "T5ForConditionalGeneration", "T5Config", _WRITTEN,
        vocab_size=WORDS, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
    ),
    "bart": _words(
        "BartForConditionalGeneration", "BartConfig", _WRITTEN, max_position_embeddings=32, **_PAIR
    ),
    "whisper": _of(
        "WhisperForConditionalGeneration", "WhisperConfig",
        {"input_features": normal(4, 8, 20), "labels": _WRITTEN}, float((_WRITTEN != IGNORED).sum()),
        num_mel_bins=8, max_source_positions=10, max_target_positions=16, decoder_start_token_id=0, **_PAIR,
    ),
    "vit": _of(
        "ViTForImageClassification", "ViTConfig", {"pixel_values": normal(4, 3, 16, 16), "labels": _CLASSES}, 4.0,
        num_labels=3, **_VIT,
    ),
    "vit-multi": _of(
        "ViTForImageClassification", "ViTConfig", {"pixel_values": normal(4, 3, 16, 16), "labels": _SEVERAL}, 12.0,
        num_labels=3, problem_type="multi_label_classification", floats=("pixel_values", "labels"), **_VIT,
    ),
    "convnext": _of(
        "ConvNextForImageClassification", "ConvNextConfig",
        {"pixel_values": normal(4, 3, 32, 32), "labels": _CLASSES}, 4.0,
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], image_size=32, num_labels=5,
    ),
    "segformer": _of(
        "SegformerForSemanticSegmentation", "SegformerConfig",
        {"pixel_values": normal(4, 3, 32, 32), "labels": _MAP}, float((_MAP != 255).sum()),
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=3,
    ),
    "clip": _of(
        "CLIPModel", "CLIPConfig", {**_TEXT, "pixel_values": normal(4, 3, 16, 16)}, 4.0,
        additive=False, extra={"return_loss": True}, projection_dim=8,
        text_config={"bos_token_id": 1, "eos_token_id": 2, "projection_dim": 8, **_ENCODER},
        vision_config={"projection_dim": 8, **_VIT},
    ),
    "wav2vec2": _of(
        "Wav2Vec2ForCTC", "Wav2Vec2Config", {"input_values": normal(4, 320), "labels": _SPOKEN}, SPOKEN_TERMS,
        additive=False, twice=False, **_SPEECH,
    ),
    "wav2vec2-mean": _of(
        "Wav2Vec2ForCTC", "Wav2Vec2Config", {"input_values": normal(4, 320), "labels": _SPOKEN}, 4.0,
        twice=False, ctc_loss_reduction="mean", **_SPEECH,
    ),
}  # fmt: skip
