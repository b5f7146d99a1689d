"""Freshly initialised attention is no illness: its queries and keys get almost no gradient, by theory."""

import pytest
import torch
from torch import Tensor, nn

from curvcli import Batch, Subject, analyse, make_objective
from curvcli.objective.objective import Objective


class Attention(nn.Module):
    """One head over small inputs: the logits are near zero, and so is what changes them."""

    def __init__(self, names: tuple[str, str, str]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names = names
        for name in names:
            self.add_module(name, nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.get_submodule(name)(x) for name in self.names)
        weights = torch.softmax(q @ k.transpose(1, 2), -1)
        out: Tensor = self.head((weights @ v).mean(1))
        return out


def objective(names: tuple[str, str, str]) -> Objective:
    torch.manual_seed(1)
    data = torch.randn(6, 5, 8), torch.randint(0, 3, (6,))
    return make_objective(
        Attention(names), [Batch(data, 6)],
        lambda m, d: (nn.functional.cross_entropy(m(d[0]), d[1], reduction="sum"), float(len(d[1]))),
    )  # fmt: skip


def vanishing(names: tuple[str, str, str]) -> list[str]:
    answer = analyse("gradients", Subject(objective=objective(names)))
    return [f.message for f in answer.findings if f.rule == "gradients.vanishing-layer"]


@pytest.mark.parametrize(
    "names", [("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q", "k", "v"),
        ("pos_query_proj", "pos_key_proj", "v"), ("q_lin", "k_lin", "v_lin")]
)  # fmt: skip
def test_queries_and_keys_are_not_called_vanishing(names: tuple[str, str, str]) -> None:
    assert not vanishing(names)


def test_the_same_layers_by_other_names_are() -> None:
    """The rule still sees them: what is left out is left out by its role."""
    assert any(
        "first" in message or "second" in message
        for message in vanishing(("first", "second", "third"))
    )
