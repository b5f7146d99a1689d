"""What only a real card can show."""

import pytest
import torch
from torch import nn

from curvcli.loading.loss import loss_terms
from curvcli.machine.device import free_memory
from curvcli.machine.memory import out_of_memory
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective
from curvcli.operators.curvature.hessian import Hessian
from tests.device.conftest import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cuda", reason="only a card can show it")
_LIMIT = 256 << 20


def test_memory_stays_within_the_limit(device: torch.device) -> None:
    """What is planned from measured pieces holds for the peak that the card saw."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8)), nn.Linear(256, 10)).to(device)
    x, y = torch.randn(20_000, 256, device=device), (torch.arange(20_000) % 10).to(device)
    objective = make_objective(
        model, [Batch(((x,), {}, y), len(x))], loss_terms("cross_entropy", {}), memory=_LIMIT
    )
    operator = Hessian(objective, memory=_LIMIT)
    operator.matvec(torch.ones(operator.n, device=device))
    assert torch.cuda.max_memory_allocated() <= _LIMIT


def test_the_cards_own_sentence_is_recognised(device: torch.device) -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 50, device=device)
    assert out_of_memory(error.value)


def test_freed_blocks_count_as_free(device: torch.device) -> None:
    """Torch keeps what was freed: to the driver it is in use."""
    torch.cuda.empty_cache()
    before = free_memory(device)
    held = torch.empty(1 << 28, device=device)
    del held
    assert torch.cuda.memory_reserved() >= 1 << 28
    assert free_memory(device) == pytest.approx(before, rel=0.01)


def test_recorded_products_are_those_that_are_computed(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``CURVCLI_CUDA_GRAPHS=1`` changes no product beyond rounding, and is not dropped with a note."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 10))
    x, y = torch.randn(512, 64, device=device), (torch.arange(512) % 10).to(device)
    batch = Batch(((x,), {}, y), len(x))
    objective = make_objective(model.to(device), [batch], loss_terms("cross_entropy", {}))
    computed = Hessian(objective, strategy="keep")
    monkeypatch.setenv("CURVCLI_CUDA_GRAPHS", "1")
    recorded = Hessian(objective, strategy="keep")
    for _ in range(6):
        v_N = torch.randn(computed.n, device=device)
        torch.testing.assert_close(recorded.matvec(v_N), computed.matvec(v_N))
    assert not [note for note in objective.notes if "not recorded" in note]
