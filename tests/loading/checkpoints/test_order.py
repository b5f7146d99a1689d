"""States of optimizers whose groups kept no names: taken in an order that evidence supports, or refused."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvcli.errors import CheckpointError
from curvcli.loading.checkpoints.moments import read_preconditioner


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn, self.proj = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Any:
        return x + self.scale * self.proj(torch.tanh(self.attn(self.ln_1(x))))


def network() -> nn.Module:
    torch.manual_seed(0)
    names = ("embed", "1", "2", "norm", "head")
    layers = (nn.Linear(4, 6), Block(), Block(), nn.LayerNorm(6), nn.Linear(6, 3))
    return nn.Sequential(OrderedDict(zip(names, layers, strict=True)))


Divide = Callable[[Mapping[str, nn.Parameter]], list[dict[str, Any]]]


def by_axes(named: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """As nanoGPT does."""
    return [
        {"params": [p for p in named.values() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in named.values() if p.dim() < 2], "weight_decay": 0.0},
    ]


def by_kind(named: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """As the Trainer of transformers does: scales decay, biases and normalisations do not."""
    free = {n for n in named if n.endswith("bias") or ".ln_1." in n or n.startswith("norm")}
    return [
        {"params": [p for n, p in named.items() if n not in free], "weight_decay": 0.01},
        {"params": [p for n, p in named.items() if n in free], "weight_decay": 0.0},
    ]


def head_first(named: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Blocks of one shape in groups of their own: every order fits their shapes."""
    return [
        {"params": [p for n, p in named.items() if n.startswith(f"{i}.")], "lr": 10.0**-i}
        for i in (2, 1)
    ]


def no_order(named: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Shuffled within a group."""
    backwards = list(named.values())[::-1]
    return [{"params": backwards[:7], "weight_decay": 0.1}, {"params": backwards[7:]}]


def saved(
    model: nn.Module, divide: Divide, place: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Second moments and last gradient by name, from the running optimizer."""
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(divide(named), lr=1e-4)
    x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    torch.save(optimizer.state_dict(), place)
    moments = {n: optimizer.state[p]["exp_avg_sq"].clone() for n, p in named.items()}
    gradients = {n: p.grad.clone() for n, p in named.items() if p.grad is not None}
    return moments, gradients


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in model.named_parameters()}


def right(diagonal: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> bool:
    """D = √(v / (1 − β₂⁵)) + ε for every parameter."""
    return all(
        torch.allclose(diagonal[n], (v.double() / (1 - 0.999**5)).sqrt() + 1e-8, rtol=1e-12)
        for n, v in moments.items()
    )


@pytest.mark.parametrize(
    ("divide", "why"), [(by_axes, "two axes or more"), (by_kind, "biases and normalisations")]
)
@pytest.mark.parametrize("backwards", [False, True])
def test_groups_of_known_programs(
    divide: Divide, why: str, backwards: bool, tmp_path: Path
) -> None:
    """Parameters of one shape are many; the moments are those that the running optimizer keeps for each name."""
    model, path, notes = network(), tmp_path / "o.pt", list[str]()

    def groups(named: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        return divide(named)[::-1] if backwards else divide(named)

    moments, _ = saved(model, groups, path)
    found = read_preconditioner(path, shapes(model), notes)
    assert right(found.diagonal, moments)
    assert any("o.pt keeps no names" in note and why in note for note in notes)


def test_gradients_tell_orders_apart(tmp_path: Path) -> None:
    """Two blocks, the second one first: refused by shapes alone, and known by the squares of the gradient."""
    torch.manual_seed(0)
    last = Block()
    model, path, notes = (
        nn.Sequential(nn.Identity(), Block(), last),
        tmp_path / "o.pt",
        list[str](),
    )
    with torch.no_grad():
        last.scale.mul_(3)
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(head_first(named), lr=1e-4)
    x = torch.randn(64, 6)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    torch.save(optimizer.state_dict(), path)
    gradients = {n: p.grad for n, p in named.items() if p.grad is not None}
    moments = {n: optimizer.state[p]["exp_avg_sq"] for n, p in named.items()}
    with pytest.raises(CheckpointError, match="cannot be told from their shapes"):
        read_preconditioner(path, shapes(model), [])
    found = read_preconditioner(path, shapes(model), notes, gradient=lambda: gradients)
    assert right(found.diagonal, moments)
    assert any("of 2 orders that fit" in note for note in notes)
    noise = {n: torch.randn_like(p) for n, p in named.items()}
    with pytest.raises(CheckpointError, match="cannot be told"):
        read_preconditioner(path, shapes(model), [], gradient=lambda: noise)


def test_an_order_that_nobody_uses_is_refused(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "o.pt"
    _, gradients = saved(model, no_order, path)
    with pytest.raises(CheckpointError, match="cannot be told"):
        read_preconditioner(path, shapes(model), [], gradient=lambda: gradients)


def test_names_that_the_optimizer_kept_decide(tmp_path: Path) -> None:
    """Any order, and no note."""
    model, path, notes = network(), tmp_path / "o.pt", list[str]()
    named = dict(model.named_parameters())
    back = list(named.items())[::-1]
    groups: list[dict[str, Any]] = [{"params": back[:7]}, {"params": back[7:], "lr": 1e-5}]
    optimizer = torch.optim.AdamW(groups)
    nn.functional.cross_entropy(model(torch.randn(9, 4)), torch.arange(9) % 3).backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), path)
    found = read_preconditioner(path, shapes(model), notes)
    for n, p in named.items():
        v = optimizer.state[p]["exp_avg_sq"].double() / (1 - 0.999)
        torch.testing.assert_close(found.diagonal[n], v.sqrt() + 1e-8, rtol=1e-9, atol=0)
    assert not notes


def test_names_in_two_orders_are_told_by_the_gradient(tmp_path: Path) -> None:
    """Some programs sort the names: where that fits too, nothing is assumed."""
    torch.manual_seed(0)
    model, path = nn.Sequential(OrderedDict(b=Block(), a=Block())), tmp_path / "o.pt"

    def by_name(named: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        return by_axes(dict(sorted(named.items())))

    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(by_name(named), lr=1e-4)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.linspace(-1, 1, 60).view(10, 6)).square().mean().backward()
        optimizer.step()
    torch.save(optimizer.state_dict(), path)
    with pytest.raises(CheckpointError, match="cannot be told"):
        read_preconditioner(path, shapes(model), [])
    gradients = {n: p.grad for n, p in named.items() if p.grad is not None}
    found = read_preconditioner(path, shapes(model), [], gradient=lambda: gradients)
    assert right(found.diagonal, {n: optimizer.state[p]["exp_avg_sq"] for n, p in named.items()})
