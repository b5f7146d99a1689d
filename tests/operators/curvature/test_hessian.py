"""Hessian-vector products are those of the dense matrix by every strategy and within every memory limit."""

import pytest
import torch
from torch import Tensor, nn

from curvcli.errors import MemoryLimitError
from curvcli.operators.curvature.curvature import Strategy
from curvcli.operators.curvature.hessian import Hessian
from tests.conftest import MakeObjective
from tests.oracles.dense import (
    dense_hessian,
    random_network,
)
from tests.oracles.samples import X50, Y50, small


def test_t15_finite_differences_scale_their_step(make_objective: MakeObjective) -> None:
    operator = Hessian(make_objective(small().double(), X50.double(), Y50))
    h_NN = dense_hessian(small(), X50, Y50, "cross_entropy")
    for scale in (1e-6, 1.0, 1e6):
        v_N = scale * torch.ones(operator.n, dtype=torch.float64)
        product_N = operator.difference_product(v_N)
        # Central differences with a step of eps^(1/3) are right to about eps^(2/3) ≈ 4e-11 · f'''/f''.
        assert torch.allclose(product_N, h_NN @ v_N, rtol=1e-6, atol=1e-7 * scale)


@pytest.mark.parametrize("strategy", ["keep", "rebuild", "finite-difference"])
def test_every_strategy_gives_the_same_products(
    make_objective: MakeObjective, strategy: Strategy
) -> None:
    objective = make_objective(
        small().double(), X50.double(), Y50, splits=[20, 30], weight_decay=0.1
    )
    operator = Hessian(objective, strategy=strategy)
    h_NN = dense_hessian(small(), X50, Y50, "cross_entropy", weight_decay=0.1)
    eye = torch.eye(operator.n, dtype=torch.float64)
    products = torch.stack([operator.matvec(e) for e in eye])
    tolerance = 1e-7 if strategy == "finite-difference" else 1e-12
    assert torch.allclose(products, h_NN, atol=tolerance)
    parts = list(operator.parts(eye))
    assert [p.weight for p in parts] == [20, 30]
    summed = sum(p.products_KN for p in parts) + 0.1 * eye
    assert torch.allclose(torch.as_tensor(summed), h_NN, atol=tolerance)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_against_finite_differences(
    kind: str, make_objective: MakeObjective
) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.head = getattr(nn, kind)(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.layer(x)[0][:, -1])
            return logits

    x = torch.randn(10, 6, 4, generator=torch.Generator().manual_seed(0))
    operator = Hessian(make_objective(Recurrent(), x, Y50[:10]))
    assert not operator.finite_differences
    error = operator.check(operator.gradient)
    # Central differences in float32 come to about eps^(2/3) ≈ 2e-5 · f'''/f''.
    assert error is not None
    assert error < 1e-2


class Tight(nn.Module):
    """A network that runs out of memory with more samples than its limit."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.limit = small(), 50

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.limit:
            raise RuntimeError(
                "DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"
            )
        out: Tensor = self.net(x)
        return out


@pytest.mark.parametrize(("strategy", "tolerance"), [("keep", 1e-5), ("finite-difference", 1e-3)])
def test_running_out_of_memory_halves_the_micro_batch(
    make_objective: MakeObjective, strategy: Strategy, tolerance: float
) -> None:
    """Differences of float32 gradients are right to eps^(2/3) or so, products to some eps."""
    model = Tight()
    objective = make_objective(model, X50, Y50)
    operator = Hessian(objective, strategy=strategy)
    operator.release()
    model.limit = 13
    h_NN = dense_hessian(small(), X50, Y50, "cross_entropy")
    v_N = torch.ones(operator.n)
    assert torch.allclose(operator.matvec(v_N).double(), h_NN @ v_N.double(), atol=tolerance)
    assert operator.micro_batch == 12
    assert [n for n in objective.notes if "out of memory" in n]


def test_memory_limit_chooses_micro_batches_and_keeps_the_digits(
    make_objective: MakeObjective, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curvcli.machine.memory.used_memory", lambda device: 0)
    model = random_network(0, [4, 400, 3], "tanh")
    x = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 3, (20_000,), generator=torch.Generator().manual_seed(1))
    objective = make_objective(model, x, y)
    # Hidden activations of 32 MB, several of which a graph holds: 60 MB are too few for all samples.
    operator = Hessian(objective, memory=60_000_000)
    roomy = Hessian(objective, memory=2_000_000_000)
    assert (operator.strategy, roomy.strategy) == ("rebuild", "keep")
    assert operator.micro_batch is not None
    assert 1000 < operator.micro_batch < 20_000
    v_N = torch.ones(operator.n)
    # Sums of 20,000 terms in another order, in float32.
    assert torch.allclose(operator.matvec(v_N), roomy.matvec(v_N), rtol=1e-4, atol=1e-6)


def test_a_limit_that_nothing_fits_in_is_an_error_with_the_bytes(
    make_objective: MakeObjective,
) -> None:
    with pytest.raises(MemoryLimitError, match="are available; one sample needs"):
        Hessian(make_objective(small(), X50, Y50), memory=1)
