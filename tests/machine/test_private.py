"""Without a private name of torch the answers are the same."""

from typing import Any

import pytest
import torch
from torch import nn

from curvcli.analyses.shared.subject import Subject
from curvcli.api import analyse
from curvcli.machine import private
from curvcli.operators.curvature.hessian import Hessian
from tests.conftest import MakeObjective

# Float32 products in another order.
_RELATIVE = 1e-4


@pytest.mark.parametrize(
    ("home", "name"),
    [
        (torch._C._functorch, "peek_interpreter_stack"),
        (torch._C, "_will_engine_execute_node"),
        (torch._C._functorch, "_set_vmap_fallback_warning_enabled"),
        (torch, "_foreach_norm"),
        (torch.utils.checkpoint, "_checkpoint_without_reentrant_generator"),
    ],
)
def test_each_fallback_gives_the_same_answer(
    home: Any, name: str, make_objective: MakeObjective, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 3, padding=1), nn.GELU(), nn.Flatten(),
        nn.Linear(48, 3),
    )  # fmt: skip
    x, y = torch.randn(8, 16), torch.arange(8) % 3

    def answers() -> tuple[torch.Tensor, list[float]]:
        objective = make_objective(model, x, y)
        operator = Hessian(objective)
        v_N = torch.linspace(-1, 1, operator.n)
        layers = analyse("gradients", Subject(objective=objective)).result.layers
        return operator.matvec(v_N), [r.weight_gradient_rms or 0.0 for r in layers]

    product_N, sizes = answers()
    monkeypatch.delattr(home, name)
    without_N, found = answers()
    torch.testing.assert_close(without_N, product_N, rtol=_RELATIVE, atol=1e-6)
    assert found == [pytest.approx(s, rel=_RELATIVE) for s in sizes]


def test_the_parts_of_a_tree_are_found_under_both_names() -> None:
    """An attribute up to torch 2.8, a method later."""
    spec: Any = torch.utils._pytree.tree_structure(((1, 2), {"y": 3}))
    kinds = [part.type for part in private.children(spec)]
    old: Any = type("Old", (), {"children_specs": private.children(spec)})()
    assert kinds == [tuple, dict]
    assert [part.type for part in private.children(old)] == kinds


def test_a_transform_is_seen() -> None:
    assert not private.transformed()
    seen: list[bool] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(private.transformed())
        return x.sum()

    torch.func.grad(look)(torch.ones(2))
    assert seen == [True]
