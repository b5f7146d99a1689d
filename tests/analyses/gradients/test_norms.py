"""Norms over channels, and networks whose last layer is no block."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.analyses.gradients.test_signals import RTOL, Residual, rows, run
from tests.conftest import MakeObjective


class ChannelsFirst(nn.LayerNorm):
    """A norm over the second axis of an image."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("declared", [None, "channels_first"])
def test_a_norm_over_channels_has_the_deviation_over_them(
    declared: str | None, make_objective: MakeObjective
) -> None:
    norm = ChannelsFirst(3, eps=0.0)
    if declared is not None:
        setattr(norm, "data_format", declared)  # noqa: B010  # no attribute of nn.LayerNorm
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(60, 4))
    x = torch.randn(24, 3, 4, 5)
    found = rows(run(make_objective(model, x, torch.randint(4, (24,)))))["0"]
    assert found.norm_gain == pytest.approx(float((1 / x.std(1, unbiased=False)).mean()), rel=RTOL)


class Capped(Residual):
    """Logits that are capped at the end are no block of the residual stream."""

    def forward(self, x: Tensor) -> Any:
        return 30 * torch.tanh(super().forward(x) / 30)


def test_the_networks_own_output_is_no_residual_block(make_objective: MakeObjective) -> None:
    torch.manual_seed(0)
    model, x = Capped(), torch.randn(24, 16)
    result = run(make_objective(model, x, torch.randint(4, (24,))))
    first = model.blocks[0](model.stem(x)).detach()
    expected = (
        model.blocks[1:](first).detach().square().mean().sqrt() / first.square().mean().sqrt()
    )
    assert result.residual_growth == pytest.approx(float(expected), rel=RTOL)
