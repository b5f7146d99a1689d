"""What is inspected on every device: sample models, and a program that makes tensors of its own."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.oracles.program import ROOT

SAMPLES = ("digits_mlp", "digits_cnn", "digits_lstm", "bytes_gpt")
NAMES = (*SAMPLES, "exported")


class Placed(nn.Module):
    """Tokens and their places, which are made inside, so that an exported program holds a device."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.places = nn.Embedding(6, 8)
        self.register_buffer("scale", torch.full((8,), 2.0))
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of five classes, shape (B, 5)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = torch.tanh(self.embedding(tokens) * self.scale + self.places(places))
        out: Tensor = self.head(x.mean(1))
        return out


def write_targets(folder: Path) -> None:
    """The sample models, and ``exported.toml`` beside them."""
    shutil.copytree(ROOT / "sample_models", folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch warns of itself
        example = (torch.zeros(3, 6, dtype=torch.int64),)
        made = torch.export.export(
            Placed().eval(), example, dynamic_shapes=({0: torch.export.Dim("n")},)
        )
        torch.export.save(made, folder / "exported.pt2")
    rng = np.random.default_rng(0)
    np.savez(folder / "tokens.npz", x=rng.integers(0, 16, (8, 6)), y=rng.integers(0, 5, 8))
    text = 'checkpoint = "exported.pt2"\ndata = "tokens.npz"\nloss = "cross_entropy"\n'
    (folder / "exported.toml").write_text(text)
