"""The architectures of the sample checkpoints, as a project of its own would define them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


class DigitsMLP(nn.Module):
    """Two hidden GELU layers on flat 8x8 images."""

    def __init__(
        self, features: int = 64, hidden: int = 128, inner: int = 64, classes: int = 10
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, inner)
        self.out = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x))
        x = F.gelu(self.fc2(x))
        logits: Tensor = self.out(x)
        return logits


class RoughGELU(torch.autograd.Function):
    """GELU whose hand-written backward forgets a term: the mistake that `wrong_backward` shows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # d/dx x Φ(x) = Φ(x) + x φ(x); the second term is missing.
        return gradients[0] * 0.5 * (1 + torch.erf(x / 2**0.5))


class WrongBackwardMLP(DigitsMLP):
    """`DigitsMLP` with the rough GELU after its first layer."""

    def forward(self, x: Tensor) -> Tensor:
        rough: Callable[[Tensor], Tensor] = RoughGELU.apply
        x = rough(self.fc1(x))
        x = F.gelu(self.fc2(x))
        logits: Tensor = self.out(x)
        return logits


class DigitsCNN(nn.Module):
    """Three convolutions with batch normalisation on 8x8 images that arrive flat."""

    def __init__(self, channels: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x.view(-1, 1, 8, 8))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


class DigitsLSTM(nn.Module):
    """An LSTM that reads 64 pixels in a number of equal steps and classifies its last state."""

    def __init__(self, steps: int = 8, hidden: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.steps = steps
        self.lstm = nn.LSTM(64 // steps, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x.view(x.shape[0], self.steps, -1))
        logits: Tensor = self.head(states[:, -1])
        return logits


class AddingLSTM(nn.Module):
    """An LSTM that reads a long sequence and gives one number at its end."""

    def __init__(self, features: int = 2, hidden: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        y: Tensor = self.head(states[:, -1])
        return y


class Attention(nn.Module):
    """Causal multi-head self-attention with the fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        qkv = self.qkv(x).view(n, t, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(n, t, width))
        return out


class Block(nn.Module):
    """A pre-LayerNorm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class BytesGPT(nn.Module):
    """A byte-level transformer whose output head shares its weight with the token embedding."""

    def __init__(
        self, width: int = 64, layers: int = 3, heads: int = 4, context: int = 64, vocab: int = 256
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens) + self.positions(positions)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class DeepMLP(nn.Module):
    """`depth` linear layers of equal width, Xavier initialised with a gain of choice."""

    def __init__(
        self,
        depth: int = 20,
        width: int = 32,
        *,
        activation: str = "sigmoid",
        gain: float = 1.0,
        features: int = 64,
        classes: int = 10,
    ) -> None:
        super().__init__()
        sizes = [features, *[width] * (depth - 1), classes]
        self.layers = nn.Sequential()
        for i in range(depth):
            linear = nn.Linear(sizes[i], sizes[i + 1])
            nn.init.xavier_normal_(linear.weight, gain=gain)
            nn.init.zeros_(linear.bias)
            self.layers.add_module(f"linear{i + 1}", linear)
            if i + 1 < depth:
                self.layers.add_module(f"{activation}{i + 1}", ACTIVATIONS[activation]())

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


class Regressor(nn.Module):
    """One hidden tanh layer and one output."""

    def __init__(self, features: int = 4, hidden: int = 8) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(torch.tanh(self.hidden(x)))
        return y


class LinearRegression(nn.Module):
    """y = x w + b with one output."""

    def __init__(self, features: int = 30) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y
