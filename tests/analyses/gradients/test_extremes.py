"""Rules at their extremes: gradients of exactly zero, layers wholly dead, thresholds set by hand, masked logits."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvcli import Subject, analyse
from curvcli.report.data import Finding
from tests.conftest import MakeObjective


def findings(objective: Any, **options: Any) -> list[Finding]:
    return analyse("gradients", Subject(objective=objective), **options).findings


def rules(found: list[Finding]) -> set[str]:
    return {f.rule.removeprefix("gradients.") for f in found if f.severity != "note"}


class Lost(nn.Module):
    """A network whose gradient is lost on the way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.body, self.head = how, nn.Linear(5, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.head(torch.tanh(self.body(x)))
        return {
            "softmax": lambda: torch.softmax(y, 1),
            "round": y.round,
            "clamp": lambda: y.clamp(7, 8),
            "kept": lambda: y,
        }[self.how]()


@pytest.mark.parametrize("how", ["softmax", "round", "clamp", "kept"])
def test_a_gradient_of_exactly_zero_is_the_worst_finding(
    how: str, make_objective: MakeObjective
) -> None:
    objective = make_objective(Lost(how), torch.randn(16, 5), torch.rand(16, 1), "mse")
    found = findings(objective)
    assert ("zero-gradient" in rules(found)) == (how != "kept")
    if how != "kept":
        (finding,) = [f for f in found if f.rule == "gradients.zero-gradient"]
        assert (finding.severity, finding.subject, finding.value) == ("error", "head", 1.0)


def rectified(width: int, dead: int) -> nn.Module:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 1))
    with torch.no_grad():
        model[0].bias.fill_(5.0)
        model[0].bias[:dead] = -50.0
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("width", [1, 2, 4, 9])
def test_a_layer_wholly_dead_is_found_however_narrow(
    width: int, make_objective: MakeObjective
) -> None:
    x, y = torch.rand(8, 2), torch.rand(8, 1)
    assert "dead-units" in rules(findings(make_objective(rectified(width, width), x, y, "mse")))
    assert "dead-units" not in rules(findings(make_objective(rectified(width, 0), x, y, "mse")))


@pytest.mark.parametrize(
    ("threshold", "ill"), [(0.0, True), (0.6, True), (0.7, False), (1.0, False)]
)
def test_a_threshold_that_the_user_sets_is_obeyed_to_the_letter(
    threshold: float, ill: bool, make_objective: MakeObjective
) -> None:
    """43 of 64 are 0.67; without the user's word three standard errors are allowed."""
    objective = make_objective(rectified(64, 43), torch.rand(8, 2), torch.rand(8, 1), "mse")
    assert ("dead-units" in rules(findings(objective, thresholds={"dead-units": threshold}))) == ill
    assert "dead-units" not in rules(findings(objective))


def test_masked_logits_with_a_finite_loss_are_no_fault(make_objective: MakeObjective) -> None:
    class Masked(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.by, self.layer = by, nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Any:
            illegal = torch.tensor([False, True, False, True, False])
            return torch.relu(self.layer(x)).masked_fill(illegal, self.by)

    x, y = torch.randn(12, 6), torch.zeros(12, dtype=torch.long)
    assert "nonfinite" not in rules(findings(make_objective(Masked(-torch.inf), x, y)))
    ill = make_objective(Masked(torch.inf), x, y, accept_nonfinite=True)
    assert "nonfinite" in rules(findings(ill))


@pytest.mark.parametrize("kind", [nn.Tanh, nn.ReLU, nn.GELU])
def test_fresh_networks_raise_no_alarm(
    kind: type[nn.Module], make_objective: MakeObjective
) -> None:
    """20 seeds each of torch's own initialisation."""
    for seed in range(20):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(16, 32), kind(), nn.Linear(32, 32), kind(), nn.Linear(32, 4)
        )
        objective = make_objective(model, torch.randn(32, 16), torch.randint(4, (32,)))
        assert not rules(findings(objective)), seed
