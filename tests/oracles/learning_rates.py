"""Training with multiples of the learning rate that `lr` answers with: what really happens.

``python -m tests.oracles.learning_rates`` writes the table in ``docs/learning-rates.md`` again.
"""

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvcli import analyse
from curvcli.analyses.lr.result import LrResult
from curvcli.analyses.shared.subject import Subject
from curvcli.loading.loss import loss_terms
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective

MULTIPLES = (0.5, 0.9, 1.1, 2.0)
STEPS = 1000
PAGE = Path(__file__).parents[2] / "docs" / "learning-rates.md"


class Case(NamedTuple):
    """A network with its data, where it stands, and the optimizer it is trained with."""

    name: str
    kind: str
    model: nn.Module
    x: Tensor
    y: Tensor
    loss: str


class Outcome(NamedTuple):
    """What training by hand came to."""

    start: float
    end: float
    dead: float
    """Share of ReLU units that fire for no sample; NaN without ReLUs."""

    @property
    def trained(self) -> bool:
        """Finite, below the start, and with living units."""
        return (
            math.isfinite(self.end) and self.end <= self.start * (1 + 1e-6) and not self.dead > 0.5
        )


class Transformer(nn.Module):
    """Two causal blocks over eight tokens, read at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 16)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x[:, -1])
        return out


def cases() -> dict[str, Callable[[], Case]]:
    """The six networks."""
    return {
        "linear": _linear,
        "tanh at init": lambda: _tanh("tanh at init", 0),
        "tanh midway": lambda: _tanh("tanh midway", 100),
        "tanh at the minimum": lambda: _tanh("tanh at the minimum", 6000),
        "ReLU at init": _relu,
        "transformer": _transformer,
    }


def _linear() -> Case:
    torch.manual_seed(0)
    x = torch.randn(60, 5)
    return Case(
        "linear", "sgd", nn.Linear(5, 1), x, x @ torch.randn(5, 1) + 0.1 * torch.randn(60, 1), "mse"
    )


def _classes(count: int) -> tuple[Tensor, Tensor]:
    """Gaussian classes that overlap."""
    centres = 1.5 * torch.randn(count, 10)
    y = torch.arange(200) % count
    return centres[y] + torch.randn(200, 10), y


def _tanh(name: str, steps: int) -> Case:
    torch.manual_seed(1)
    x = torch.randn(80, 4)
    y = torch.sin(x.sum(1, keepdim=True)) + 0.3 * torch.randn(80, 1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    return Case(name, "sgd", model, x, y, "mse")


def _relu() -> Case:
    torch.manual_seed(2)
    x, y = _classes(5)
    model = nn.Sequential(
        nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 5),
    )  # fmt: skip
    return Case("ReLU at init", "momentum", model, x, y, "cross_entropy")


def _transformer() -> Case:
    torch.manual_seed(3)
    tokens = torch.randint(0, 16, (128, 8))
    return Case(
        "transformer",
        "adamw",
        Transformer(),
        tokens,
        (tokens[:, 0] + tokens[:, -1]) % 16,
        "cross_entropy",
    )


def answer(case: Case) -> LrResult:
    """What `lr` says."""
    batch = Batch(((case.x,), {}, case.y), len(case.x))
    objective = make_objective(copy.deepcopy(case.model), [batch], loss_terms(case.loss, {}))
    result = analyse("lr", Subject(objective=objective), optimizer=case.kind).result
    assert isinstance(result, LrResult)
    return result


def train(case: Case, rate: float) -> Outcome:
    """Train a copy by torch's own optimizer."""
    model = copy.deepcopy(case.model)
    optimizers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=rate),
        "momentum": lambda: torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=rate),
    }
    optimizer = optimizers[case.kind]()
    losses_by_name: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "mse": F.mse_loss,
        "cross_entropy": F.cross_entropy,
    }
    loss_of = losses_by_name[case.loss]
    losses = []
    for _ in range(STEPS + 1):
        optimizer.zero_grad()
        loss = loss_of(model(case.x), case.y)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]) or losses[-1] > 1e6:
            return Outcome(losses[0], math.inf, math.nan)
        loss.backward()
        optimizer.step()
    return Outcome(losses[0], losses[-1], _dead(model, case.x))


def _dead(model: nn.Module, x: Tensor) -> float:
    """Share of ReLU units of a sequential network that are zero for all samples."""
    if not isinstance(model, nn.Sequential) or not any(isinstance(m, nn.ReLU) for m in model):
        return math.nan
    silent, units = 0, 0
    with torch.no_grad():
        for module in model:
            x = module(x)
            if isinstance(module, nn.ReLU):
                silent, units = silent + int((x.amax(0) == 0).sum()), units + x.shape[1]
    return silent / units


def row(case: Case) -> tuple[LrResult, list[Outcome]]:
    """The answer, and training with its multiples."""
    found = answer(case)
    assert found.highest is not None
    return found, [train(case, multiple * found.highest) for multiple in MULTIPLES]


def _told(outcome: Outcome) -> str:
    if not math.isfinite(outcome.end):
        return "diverges"
    dead = f", {outcome.dead:.0%} dead" if outcome.dead > 0 else ""
    return f"{outcome.end:.3g}{dead}" + ("" if outcome.trained else " ✗")


def table() -> str:
    """The table as Markdown."""
    lines = [
        "| network | optimizer | loss before | bound | `lr`: range | ends by | 0.5 × | 0.9 × | 1.1 × | 2 × |",
        "|:---|:---|---:|---:|:---|:---|---:|---:|---:|---:|",
    ]
    for make in cases().values():
        case = make()
        found, outcomes = row(case)
        cells = " | ".join(_told(o) for o in outcomes)
        lines.append(
            f"| {case.name} | {case.kind} | {outcomes[0].start:.3g} | {found.bound.rate:.3g} "
            f"| {found.lowest:.3g} to {found.highest:.3g} | {found.ends_by} | {cells} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Write the table between its marks."""
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition("<!-- table -->\n")
    _, _, after = rest.partition("<!-- end -->")
    made = table()
    sys.stdout.write(made + "\n")
    PAGE.write_text(f"{before}<!-- table -->\n{made}\n<!-- end -->{after}", "utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
