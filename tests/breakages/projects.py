"""A small training project, healthy and broken in ten ways, each trained in a second or two."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Project(NamedTuple):
    """What is left of a training: the network, validation data and the loss that curvcli is told."""

    model: nn.Module
    x: Tensor
    y: Tensor
    start: dict[str, Tensor]
    loss: str = "cross_entropy"


def _data(seed: int, samples: int = 240, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Gaussian classes that hardly overlap."""
    generator = torch.Generator().manual_seed(seed)
    centres = 1.2 * torch.randn(classes, 10, generator=generator)
    y = torch.arange(samples) % classes
    return centres[y] + torch.randn(samples, 10, generator=generator), y


def _net(seed: int, *more: nn.Module, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(10, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 3), *more
    )


def _train(
    model: nn.Module, x: Tensor, y: Tensor, lr: float = 0.05, steps: int = 150
) -> dict[str, Tensor]:
    """Train; the weights that it began with."""
    start = {name: t.clone() for name, t in model.state_dict().items()}
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9
    )
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return start


def healthy(seed: int = 0) -> Project:
    """Nothing is wrong."""
    x, y = _data(seed)
    model = _net(seed)
    start = _train(model, x, y)
    return Project(model, x, y, start)


def rate_too_high() -> Project:
    """Momentum with a rate that kills the units."""
    x, y = _data(0)
    model = _net(0)
    start = _train(model, x, y, lr=8.0, steps=20)
    return Project(model, x, y, start)


def softmax_twice() -> Project:
    """A softmax at the end, under cross_entropy."""
    x, y = _data(0)
    model = _net(0, nn.Softmax(1))
    start = _train(model, x, y)
    return Project(model, x, y, start)


def pixels_not_divided() -> Project:
    """Trained on standardised inputs, validated on raw ones."""
    project = healthy()
    return project._replace(x=127 * project.x + 127)


def pixels_divided_twice() -> Project:
    """Inputs of RMS 0.004."""
    x, y = _data(0)
    model = _net(0)
    start = _train(model, x / 255, y)
    return Project(model, x / 255, y, start)


def shuffled_labels() -> Project:
    """Labels that have nothing to do with the inputs, in training and validation."""
    x, y = _data(0, samples=600)
    model = _net(0)
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]
    start = _train(model, x, shuffled, lr=0.01, steps=40)
    return Project(model, x, shuffled, start)


def frozen_by_mistake() -> Project:
    """The first layer was never trained."""
    x, y = _data(0)
    model = _net(0)
    for p in model[0].parameters():
        p.requires_grad_(False)
    start = _train(model, x, y)
    return Project(model, x, y, start)


def running_statistics() -> Project:
    """A BatchNorm whose running variance is a million times too large."""
    x, y = _data(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    start = _train(model, x, y)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_var is not None
    norm.running_var *= 1e6
    return Project(model, x, y, start)


def vanishing() -> Project:
    """Eight sigmoids in a row."""
    x, y = _data(0)
    torch.manual_seed(0)
    inner = [layer for _ in range(8) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    model = nn.Sequential(nn.Linear(10, 32), nn.Sigmoid(), *inner, nn.Linear(32, 3))
    start = _train(model, x, y, steps=50)
    return Project(model, x, y, start)


def not_a_number() -> Project:
    """Weights that are NaN."""
    project = healthy()
    with torch.no_grad():
        next(project.model.parameters())[0, 0] = float("nan")
    return project


def dead_layer() -> Project:
    """Biases that keep a layer silent."""
    project = healthy()
    bias = project.model.get_parameter("2.bias")
    with torch.no_grad():
        bias.fill_(-1e3)
    return project


BREAKAGES: dict[str, Callable[[], Project]] = {
    f.__name__: f
    for f in (
        rate_too_high, softmax_twice, pixels_not_divided, pixels_divided_twice, shuffled_labels,
        frozen_by_mistake, running_statistics, vanishing, not_a_number, dead_layer,
    )
}  # fmt: skip


def written(project: Project, folder: Path) -> str:
    """The project as a target file with its checkpoint, data and network."""
    torch.save(project.model, folder / "whole.pt")
    torch.save(project.model.state_dict(), folder / "weights.pt")
    (folder / "run").mkdir()
    for step, weights in ((0, project.start), (1, project.model.state_dict())):
        torch.save(weights, folder / "run" / f"step_{step}.pt")
    torch.save({"x": project.x, "y": project.y}, folder / "data.pt")
    code = (
        "from pathlib import Path\n\nimport torch\n\n\ndef build():\n"
        "    return torch.load(Path(__file__).with_name('whole.pt'), weights_only=False)\n"
    )
    (folder / "net.py").write_text(code, "utf-8")
    target = folder / "run.toml"
    target.write_text(
        f'checkpoint = "weights.pt"\nmodel = "net.py:build"\ndata = "data.pt"\nloss = "{project.loss}"\n',
        "utf-8",
    )
    return str(target)
