"""Standard networks as their libraries initialise them, each with a batch that fits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Fresh = tuple[nn.Module, Tensor, Tensor]
"""Network, inputs, classes."""

_N = 16


def _labels(classes: int = 4) -> Tensor:
    return torch.randint(0, classes, (_N,))


def _dense(activation: type[nn.Module], deep: int = 3) -> Fresh:
    layers: list[nn.Module] = [nn.Linear(12, 32), activation()]
    for _ in range(deep - 1):
        layers += [nn.Linear(32, 32), activation()]
    return nn.Sequential(*layers, nn.Linear(32, 4)), torch.randn(_N, 12), _labels()


def _convolutional() -> Fresh:
    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]

    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)]
    model = nn.Sequential(*block(3, 8), nn.MaxPool2d(2), *block(8, 16), *pooled)
    return model, torch.randn(_N, 3, 8, 8), _labels()


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm1 = (
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.second, self.norm2 = (
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.first(x)))
        return torch.relu(x + self.norm2(self.second(h)))


def _residual() -> Fresh:
    stem = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    blocks = [_Residual(8) for _ in range(3)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    model = nn.Sequential(*stem, *blocks, *head)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model, torch.randn(_N, 3, 8, 8), _labels()


class _Last(nn.Module):
    """The last step of a recurrent layer, classified."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.rnn, self.head = kind(5, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.rnn(x)[0][:, -1])


def _recurrent(kind: type[nn.Module]) -> Fresh:
    return _Last(kind), torch.randn(_N, 8, 5), _labels()


class _Encoder(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
        last = nn.LayerNorm(16) if norm_first else None
        self.embed, self.place = nn.Linear(5, 16), nn.Parameter(torch.randn(8, 16) * 0.02)
        self.encoder = nn.TransformerEncoder(layer, 2, last, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.encoder(self.embed(x) + self.place).mean(1))


def _encoder(norm_first: bool) -> Fresh:
    return _Encoder(norm_first), torch.randn(_N, 8, 5), _labels()


def _huggingface(name: str, images: bool, **config: Any) -> Fresh:
    import transformers

    kind = getattr(
        transformers,
        f"{name}ForImageClassification" if images else f"{name}ForSequenceClassification",
    )
    settings = getattr(transformers, f"{name}Config")(num_labels=4, pad_token_id=0, **config)
    x = torch.randn(_N, 3, 16, 16) if images else torch.randint(4, 40, (_N, 10))
    return kind(settings), x, _labels()


_SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
_IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 8, **_SIZES}
_GPT2: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
_TEXT: dict[str, Any] = {"max_position_embeddings": 16, "vocab_size": 40, **_SIZES}

NETWORKS: dict[str, Callable[[], Fresh]] = {
    "MLP, ReLU": lambda: _dense(nn.ReLU),
    "MLP, tanh": lambda: _dense(nn.Tanh),
    "MLP, GELU": lambda: _dense(nn.GELU),
    "convolutional": _convolutional,
    "residual": _residual,
    "LSTM": lambda: _recurrent(nn.LSTM),
    "GRU": lambda: _recurrent(nn.GRU),
    "encoder, norm first": lambda: _encoder(True),
    "encoder, norm last": lambda: _encoder(False),
    "GPT-2": lambda: _huggingface("GPT2", False, vocab_size=40, **_GPT2),
    "GPT-NeoX": lambda: _huggingface("GPTNeoX", False, **_TEXT),
    "OLMo 2": lambda: _huggingface("Olmo2", False, num_key_value_heads=2, **_TEXT),
    "BERT": lambda: _huggingface("Bert", False, **_TEXT),
    "ViT": lambda: _huggingface("ViT", True, **_IMAGE),
    "DeiT": lambda: _huggingface("DeiT", True, **_IMAGE),
}
