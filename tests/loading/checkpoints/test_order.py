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
from curvcli.loading.checkpoints.training import read_training, steps_by_name


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


def partly(model: nn.Module, kept: Callable[[str], bool], place: Path, **settings: Any) -> None:
    """Saves the state of AdamW over some of the parameters, after three steps."""
    chosen = [p for n, p in model.named_parameters() if kept(n)]
    optimizer = torch.optim.AdamW(chosen, lr=1e-2, **settings)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(16, 4)), torch.arange(16) % 3).backward()
        optimizer.step()
    torch.save({"optimizer": optimizer.state_dict()}, place)


@pytest.mark.parametrize(
    "kept",
    [
        lambda n: not n.startswith("embed"),
        lambda n: not n.startswith(("embed", "1.")),
        lambda n: n.startswith("head"),
        lambda n: not n.startswith("norm"),
        lambda n: not n.startswith(("embed", "norm")),
    ],
)
def test_parameters_that_were_not_given_are_idle(
    kept: Callable[[str], bool], tmp_path: Path
) -> None:
    """Modules left out at the front, in the middle, and at two places: the rates are zero for these alone."""
    model, path, notes = network(), tmp_path / "o.pt", list[str]()
    partly(model, kept, path)
    training = read_training(path)
    assert training is not None
    assert training.optimizer is not None
    found = steps_by_name(training.optimizer, shapes(model), path, notes)
    assert found.idle == {n: "not-given" for n in shapes(model) if not kept(n)}
    assert found.rates == {n: float(kept(n)) for n in shapes(model)}
    diagonal = read_preconditioner(path, shapes(model), []).diagonal
    assert {n for n, d in diagonal.items() if bool(d.isinf().all())} == found.idle.keys()
    assert any("all but" in note for note in notes)


def test_a_part_that_shapes_do_not_tell_is_refused(tmp_path: Path) -> None:
    """One of two blocks of the same shapes is trained: without a gradient nobody knows which."""
    model = nn.Sequential(Block(), Block())
    path = tmp_path / "o.pt"
    optimizer = torch.optim.AdamW(model[0].parameters(), lr=1e-2)
    model(torch.randn(8, 6)).square().mean().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), path)
    with pytest.raises(CheckpointError, match="parameters, the model"):
        read_preconditioner(path, shapes(model), [])
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found = read_preconditioner(path, shapes(model), [], gradient=lambda: gradients)
    assert set(found.missing) == {n for n in shapes(model) if n.startswith("1.")}


def test_groups_have_rates_of_their_own(tmp_path: Path) -> None:
    """A rate of zero, a parameter without a gradient, and a tenth of the rate: steps divide by D over the share."""
    torch.manual_seed(0)
    model, path = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4))), tmp_path / "o.pt"
    rates = (1e-2, 1e-3, 0.0, 1e-2)
    groups: list[dict[str, Any]] = [
        {"params": list(layer.named_parameters(prefix=str(i))), "lr": rate}
        for i, (layer, rate) in enumerate(zip(model, rates, strict=True))
    ]
    optimizer = torch.optim.Adam(groups)
    model[3].requires_grad_(False)
    model(torch.randn(8, 3)).square().mean().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), path)
    training = read_training(path)
    assert training is not None
    assert training.optimizer is not None
    found = steps_by_name(training.optimizer, shapes(model), path, [])
    assert found.idle == {
        "2.weight": "zero-rate", "2.bias": "zero-rate", "3.weight": "no-state", "3.bias": "no-state"
    }  # fmt: skip
    assert found.rates["1.weight"] == pytest.approx(0.1)
    diagonal = read_preconditioner(path, shapes(model), []).of_steps
    v = optimizer.state[model.get_parameter("1.weight")]["exp_avg_sq"].double() / (1 - 0.999)
    torch.testing.assert_close(diagonal["1.weight"], 10 * (v.sqrt() + 1e-8), rtol=1e-9, atol=0)
    assert bool(diagonal["2.weight"].isinf().all())
