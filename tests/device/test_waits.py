"""How often the host waits for the device: never in a product, at most once in a step of an iteration."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from curvcli.linalg.lanczos.factorization import start, step
from curvcli.linalg.operator import SymmetricOperator, random_unit_vector
from curvcli.linalg.solve import conjugate_gradients, minres
from curvcli.linalg.stochastic.quadrature import gauss_rules
from curvcli.linalg.svd.bidiagonal import Bidiagonalisation
from curvcli.loading.loss import loss_terms
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective
from curvcli.objective.objective import Objective
from curvcli.operators.autodiff.rewrites.registry import Rewritten
from curvcli.operators.curvature.hessian import Hessian
from tests.device import second
from tests.device.conftest import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "second", reason="only the second device counts")
_STEPS = 12


def waits_of(compute: Callable[[], object]) -> int:
    with second.watching() as watch:
        compute()
    return watch.waits + watch.uploads


@pytest.fixture
def objective(device: torch.device) -> Objective:
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)).to(device)
    x, y = torch.randn(20, 6, device=device), (torch.arange(20) % 3).to(device)
    return make_objective(model, [Batch(((x,), {}, y), 20)], loss_terms("cross_entropy", {}))


class Diagonal:
    """A positive matrix whose products do not wait."""

    def __init__(self, device: torch.device) -> None:
        self.n, self.dtype, self.device = 200, torch.float32, device
        self.entries_N = torch.linspace(1, 2, self.n).to(device)

    def matvec(self, v_N: Tensor) -> Tensor:
        return self.entries_N * v_N


class Maps:
    """Two diagonal maps at once."""

    def __init__(self, device: torch.device) -> None:
        self.count, self.rows, self.columns = 2, 200, 200
        self.dtype, self.device = torch.float32, device
        self.entries_SN = torch.linspace(1, 2, 400).reshape(2, 200).to(device)

    def jvp(self, v_SN: Tensor) -> Tensor:
        return self.entries_SN * v_SN

    def vjp(self, u_SM: Tensor) -> Tensor:
        return self.entries_SN * u_SM


def a_step(run: Callable[[int], object]) -> float:
    """Waits of one more step: those of the start and the end do not count."""
    few, many = waits_of(partial(run, 3)), waits_of(partial(run, 3 + _STEPS))
    return (many - few) / _STEPS


def test_a_product_on_a_kept_graph_waits_never(objective: Objective) -> None:
    operator = Hessian(objective)
    v_N = torch.ones(operator.n, device=operator.device)
    operator.matvec(v_N)
    assert waits_of(lambda: operator.matvec(v_N)) == 0


def test_a_lanczos_step_reads_once(device: torch.device) -> None:
    op = Diagonal(device)
    state = start(op, 40, 0)
    for _ in range(_STEPS):
        product_N = op.matvec(state.basis[state.processed])
        assert waits_of(partial(step, op, state, product_N)) <= 1


def test_a_step_of_a_gauss_rule_reads_once(device: torch.device) -> None:
    op: SymmetricOperator = Diagonal(device)
    q_N = random_unit_vector(op, torch.Generator().manual_seed(0))
    assert a_step(partial(gauss_rules, op, q_N)) <= 1


@pytest.mark.parametrize("solve", [conjugate_gradients, minres])
def test_a_step_of_a_solver_reads_once(solve: Callable[..., object], device: torch.device) -> None:
    op, b_N = Diagonal(device), torch.ones(200, device=device)

    def run(steps: int) -> None:
        solve(op, b_N, tol=0.0, max_matvecs=steps)

    assert a_step(run) <= 1


def test_a_golub_kahan_step_reads_once(device: torch.device) -> None:
    """Whether anything is left of the vectors of A and Aᵀ, both together; cancellation asks nothing."""

    def run(steps: int) -> None:
        found = Bidiagonalisation(Maps(device), 64, [0, 1])
        found.advance(1, 0.0, lambda: False, lambda _: None, steps=steps)

    assert a_step(run) <= 1


def test_a_look_at_singular_values_reads_once(device: torch.device) -> None:
    """All entries of B come over together, however many steps there were."""
    run = Bidiagonalisation(Maps(device), 64, [0, 1])
    run.advance(1, 0.0, lambda: False, lambda _: None, steps=_STEPS)
    assert waits_of(partial(run._small, 1)) == 1


def test_labels_are_checked_once(objective: Objective) -> None:
    """Evaluations after that of the loss, and of its gradient, read nothing but the loss."""
    assert waits_of(objective.gradient) == 0
    assert waits_of(objective.value) == 1


def test_attention_starts_no_more_kernels_for_more_heads(device: torch.device) -> None:
    """On a CPU a few heads at a time stay in the cache; elsewhere each piece is another launch."""
    started = []
    for samples in (1, 8):
        q, k, v = torch.randn(3, samples, 4, 256, 8, device=device).requires_grad_()
        with second.watching() as watch, Rewritten():
            output = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            torch.autograd.grad(output.sum(), (q, k, v), create_graph=True)
        started.append(watch.operations["aten::bmm"])
    assert started[0] == started[1] > 0
