"""Small seeded networks of many kinds with their dense float64 Hessians: what intervals and verdicts are held against.

The Hessian comes from double backward of a loss written out here, row by row, in float64; the program shares nothing
of it but torch.
"""

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import scipy.linalg
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvcli import Batch, Objective, make_objective
from curvcli.loading.loss import loss_terms

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda out, y: (
        torch.logsumexp(out, 1) - out.gather(1, y[:, None])[:, 0]
    ).mean(),
    "mse": lambda out, y: (out - y).square().mean(),
    "bce_with_logits": lambda out, y: (
        torch.logaddexp(out, torch.zeros_like(out)) - y * out
    ).mean(),
    "huber": lambda out, y: torch.where(
        (out - y).abs() <= 1, 0.5 * (out - y).square(), (out - y).abs() - 0.5
    ).mean(),
}


def _output_root(loss: str, z: Tensor, t: Tensor) -> Tensor:
    """R with RᵀR = ∂²ℓ/∂z² of one sample, from closed forms without 1 − p, which is rounding where p is near one."""
    m = len(z)
    if loss == "cross_entropy":
        p = z.softmax(0)
        # diag p − p pᵀ = Σ_{j<k} p_j p_k (e_j − e_k)(e_j − e_k)ᵀ.
        j, k = torch.triu_indices(m, m, 1)
        unit = torch.eye(m, dtype=z.dtype)
        return (p[j] * p[k]).sqrt()[:, None] * (unit[j] - unit[k])
    curvature = {
        "mse": torch.full_like(z, 2.0),
        "bce_with_logits": z.sigmoid() * (-z).sigmoid(),
        "huber": ((z - t).abs() <= 1).to(z),
    }[loss]
    return torch.diag((curvature / m).sqrt())


KINDS = ("mlp", "cnn", "attention", "lstm", "gru", "tied")
STATES = ("fresh", "scaled", "trained", "minimum")
_OUTPUTS = 3


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], width: int) -> None:
        super().__init__()
        self.cells = kind(2, width, batch_first=True)
        self.head = nn.Linear(width, _OUTPUTS)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.cells(x.view(len(x), 3, 2))[0][:, -1])


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(2, width)
        self.block = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, _OUTPUTS)

    def forward(self, x: Tensor) -> Any:
        h = self.embed(x.view(len(x), 3, 2))
        h = self.norm(h + self.block(h, h, h, need_weights=False)[0])
        return self.head(h.mean(1))


class _Tied(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, _OUTPUTS)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def _network(kind: str, width: int, activation: type[nn.Module]) -> nn.Module:
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(6, width), activation(), nn.Linear(width, width), activation(),
            nn.Linear(width, _OUTPUTS),
        )  # fmt: skip
    if kind == "cnn":
        return nn.Sequential(
            nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), activation(),
            nn.Flatten(), nn.Linear(12, _OUTPUTS),
        )  # fmt: skip
    if kind == "attention":
        return _Attention(4)
    if kind == "tied":
        return _Tied(width)
    return _Recurrent(nn.LSTM if kind == "lstm" else nn.GRU, 3)


def eigenvalues(matrix_NN: Tensor) -> Tensor:
    """Ascending, by QR: LAPACK's divide and conquer, which torch calls, does not converge on some of these."""
    return torch.from_numpy(scipy.linalg.eigvalsh(matrix_NN.numpy(), driver="ev"))


@dataclass(frozen=True)
class Sample:
    """A network of the mixture at some state of its training."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    loss: str
    batches: Sequence[int]
    """Samples of each."""

    def objective(self, dtype: torch.dtype = torch.float32, memory: int | None = None) -> Objective:
        """L for the program, in ``dtype``."""
        model = copy.deepcopy(self.model).to(dtype)
        y = self.y.to(dtype) if self.y.is_floating_point() else self.y
        parts = zip(
            self.x.to(dtype).split(list(self.batches)), y.split(list(self.batches)), strict=True
        )
        batches = [Batch(((x,), {}, t), len(x)) for x, t in parts]
        return make_objective(model, batches, loss_terms(self.loss, {}), memory=memory)

    def value(self, model: nn.Module) -> Tensor:
        """L, in the dtype of a model."""
        dtype = next(model.parameters()).dtype
        y = self.y.to(dtype) if self.y.is_floating_point() else self.y
        return LOSSES[self.loss](model(self.x.to(dtype)), y)

    def error(self) -> float:
        """How far an eigenvalue of `hessian` is off by rounding: as it moves when the last digits of θ do."""
        here, there = (eigenvalues(self.hessian(units)) for units in (0, 1))
        return 5 * float((here - there).abs().max())

    def sampled_spectrum(self, matrix: str) -> tuple[Tensor, float]:
        """Eigenvalues, largest first, of a matrix that is a sum over samples, and how far each is off; in float64.

        Gauss-Newton: Σ Jᵀ (∇² of the loss by its outputs) J. Empirical Fisher: Σ g gᵀ / W with the gradients g of
        each sample's sum and the W of L = Σ / W: samples, or elements where the loss is a mean over those.
        """
        model = copy.deepcopy(self.model).double()
        parameters = [p for p in model.parameters() if p.requires_grad]
        y = self.y.double() if self.y.is_floating_point() else self.y
        roots = []
        with sdpa_kernel(SDPBackend.MATH):
            for x, t in zip(self.x.double(), y, strict=True):
                output = model(x[None])
                jacobian = torch.stack([
                    torch.cat([g.reshape(-1) for g in torch.autograd.grad(o, parameters, retain_graph=True)])
                    for o in output[0]
                ])  # fmt: skip
                out = output.detach().requires_grad_()
                loss = LOSSES[self.loss](out, t[None])
                if matrix == "ggn":
                    roots.append(_output_root(self.loss, out[0].detach(), t) @ jacobian)
                else:
                    (slope,) = torch.autograd.grad(loss, out)
                    elements = 1 if self.loss == "cross_entropy" else _OUTPUTS
                    roots.append(elements**0.5 * slope @ jacobian)
        root = torch.cat(roots) / len(self.x) ** 0.5
        values_N = root.new_zeros(sum(p.numel() for p in parameters))
        singular = torch.linalg.svdvals(root)[: len(values_N)]
        values_N[: len(singular)] = singular.square()
        return values_N, 1e-12 * float(values_N[0])

    def hessian(self, units: int = 0) -> Tensor:
        """∇²L over the trainable parameters, (n, n), float64; at weights moved by so many units in the last place."""
        model = copy.deepcopy(self.model).double()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                signs = 2.0 * torch.randint(0, 2, parameter.shape, generator=generator).double() - 1
                parameter.mul_(1 + units * signs * torch.finfo(torch.float64).eps)
        with sdpa_kernel(SDPBackend.MATH):
            value = self.value(model)
        return dense(value, [p for p in model.parameters() if p.requires_grad])


def dense(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The Hessian of a scalar, row by row."""
    gradients = torch.autograd.grad(value, parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    rows = [
        torch.cat([
            part.reshape(-1)
            for part in torch.autograd.grad(
                entry, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        ])
        for entry in flat
    ]  # fmt: skip
    found = torch.stack(rows)
    return (found + found.T) / 2


def sample(seed: int) -> Sample:
    """The network of this number; the same on every machine but for the rounding of its training."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    kind, state = chance.choice(KINDS), chance.choice(STATES)
    loss = chance.choice(list(LOSSES))
    activation = chance.choice([nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid, nn.SiLU])
    model = _network(kind, chance.randint(3, 7), activation)
    count = chance.choice([7, 12, 24, 40])
    x = torch.randn(count, 6)
    y = torch.randn(count, _OUTPUTS)
    if loss == "cross_entropy":
        y = torch.randint(_OUTPUTS, (count,))
    elif loss == "bce_with_logits":
        y = (y > 0).float()
    made = Sample(f"{seed}: {kind} {state} {loss} {activation.__name__}", model, x, y, loss,
                  _shares(count, chance.choice([1, 1, 2, 3])))  # fmt: skip
    if chance.random() < 0.2 and kind != "tied":
        next(model.parameters()).requires_grad_(False)
    if state == "scaled":
        factor = chance.choice([0.1, 3.0, 10.0])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
    elif state != "fresh":
        _train(made, 60 if state == "trained" else 2000)
    model.eval()
    return made


def _shares(count: int, parts: int) -> list[int]:
    size = -(-count // parts)
    return [min(size, count - first) for first in range(0, count, size)]


def _train(made: Sample, steps: int) -> None:
    """Full-batch training of the network in evaluation mode, as it is inspected."""
    made.model.eval()
    optimizer = torch.optim.Adam([p for p in made.model.parameters() if p.requires_grad], 2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        made.value(made.model).backward()
        optimizer.step()
