"""The loss at moved weights against torch's own; directions against their closed forms."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from curvcli.machine.plan import Plan
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.surface.directions import filter_normalised, orthogonal_to, principal
from curvcli.operators.surface.plane import Surface, sampled
from tests.conftest import MakeObjective
from tests.oracles.samples import X50, Y50, small


def norm_network() -> nn.Sequential:
    """With running statistics that are not those of the data."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    return model.double().eval()


def test_the_loss_and_its_parts(make_objective: MakeObjective) -> None:
    """L and accuracy by torch at weights moved by hand; the standard error by the formula of a mean of equal parts."""
    model = small().double()
    x, y = X50[:48].double(), Y50[:48]
    objective = make_objective(copy.deepcopy(model), x, y)
    d_N = torch.randn(objective.n, dtype=torch.float64)
    found = Surface(objective, [d_N], Hessian(objective))(0.3)
    moved = copy.deepcopy(model)
    torch.nn.utils.vector_to_parameters(
        torch.nn.utils.parameters_to_vector(model.parameters()) + 0.3 * d_N, moved.parameters()
    )
    with torch.no_grad():
        out = moved(x)
    assert found.loss == pytest.approx(float(F.cross_entropy(out, y)), rel=1e-12)
    assert found.accuracy == pytest.approx(float((out.argmax(1) == y).double().mean()), abs=0)
    parts = F.cross_entropy(out, y, reduction="none").view(16, 3).mean(1)
    assert found.error() == pytest.approx(float(parts.std() / 4), rel=1e-9)
    assert sampled(found.kept()).loss == found.loss
    assert found.error((-1.0, found)) == 0.0


def test_weights_and_buffers_are_restored_to_the_bit(make_objective: MakeObjective) -> None:
    """Also where statistics are gathered anew; an evaluation that fails on its way leaves nothing behind."""
    objective = make_objective(norm_network(), X50.double(), Y50)
    before = copy.deepcopy(objective.model.state_dict())
    modes = [m.training for m in objective.model.modules()]
    d_N = torch.randn(objective.n, dtype=torch.float64)
    for statistics in (None, objective):
        surface = Surface(objective, [d_N], Hessian(objective), statistics)
        surface(1e3)
        surface(-0.7)
    assert all(torch.equal(v, before[k]) for k, v in objective.model.state_dict().items())
    assert [m.training for m in objective.model.modules()] == modes
    assert objective.model[1].momentum == 0.1  # type: ignore[index]


def test_statistics_are_those_of_the_data(make_objective: MakeObjective) -> None:
    """One batch: mean and unbiased variance of its activations, by hand; on other data the same statistics."""
    model = norm_network()
    x = X50.double()
    objective = make_objective(model, x, Y50)
    d_N = torch.randn(objective.n, dtype=torch.float64)
    found = Surface(objective, [d_N], Hessian(objective), objective)(0.0)
    with torch.no_grad():
        h = model[0](x)
        z = (h - h.mean(0)) / (h.var(0) + model[1].eps).sqrt() * model[1].weight + model[1].bias
        truth = float(F.cross_entropy(model[3](z.tanh()), Y50))
    assert found.loss == pytest.approx(truth, rel=1e-12)
    kept = Surface(objective, [d_N], Hessian(objective))(0.0)
    assert kept.loss == pytest.approx(objective.loss, rel=1e-12)
    assert abs(kept.loss - truth) > 1e-3


def test_few_parts_tell_no_error(make_objective: MakeObjective) -> None:
    """Two samples: no standard error; batches that cannot be cut are parts as they are."""
    two = make_objective(small(), X50[:2], Y50[:2])
    assert Surface(two, [two.flat()], Hessian(two))(0.0).error() is None
    many = make_objective(small(), X50[:40], Y50[:40], splits=[2] * 20)
    assert Surface(many, [many.flat()], Hessian(many))(0.0).weights_P.tolist() == [2] * 20


class Columns(nn.Module):
    """Outputs (C, N): samples have columns, which a split of the rows would tear apart."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x)
        return out.T


def of_columns(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, int]:
    return F.cross_entropy(outputs.T, targets, reduction="sum"), len(targets)


@pytest.mark.parametrize("micro_batch", [None, 5, 2, 1])
def test_parts_share_a_pass_where_samples_have_rows(
    make_objective: MakeObjective, micro_batch: int | None
) -> None:
    """One pass in all, or as many as memory asks for; the same sums as part by part, also where no row is a sample."""
    x, y = X50[:48].double(), Y50[:48]
    passes: list[int] = []
    found = []
    for columns in (False, True):
        model = small().double()
        objective = (
            make_objective(Columns(model), x, y, f"{__name__}:of_columns")
            if columns
            else make_objective(model, x, y)
        )
        operator = Hessian(objective)
        surface = Surface(objective, [objective.flat()], operator)
        surface(0.0)
        operator.plan = Plan(False, micro_batch, operator.plan.capacity)
        handle = objective.model.register_forward_pre_hook(
            lambda _, args: passes.append(len(args[0]))
        )
        passes.clear()
        found.append(surface(0.3))
        handle.remove()
        assert sum(passes) == 48
        if columns:
            assert max(passes) <= min(3, micro_batch or 3)
        else:  # whole parts of three samples
            assert max(passes) == {None: 48, 5: 3, 2: 2, 1: 1}[micro_batch]
    # Rounding of float64 in matrices of other sizes.
    assert torch.allclose(found[0].sums_P, found[1].sums_P, rtol=1e-13, atol=0)
    assert torch.equal(found[0].weights_P, found[1].weights_P)
    assert found[0].error() == pytest.approx(found[1].error(), rel=1e-10)


def test_filters_of_a_direction_are_as_long_as_those_of_the_weights(
    make_objective: MakeObjective,
) -> None:
    """Row by row ‖d_i‖ = ‖w_i‖, parallel to what was drawn; biases stand still."""
    objective = make_objective(small().double(), X50.double(), Y50)
    drawn_N = torch.randn(objective.n, dtype=torch.float64)
    made = objective.views(filter_normalised(objective, drawn_N))
    for p, d, raw in zip(objective.parameters, made, objective.views(drawn_N), strict=True):
        if p.dim() < 2:
            assert not d.any()
            continue
        assert torch.allclose(d.norm(dim=1), p.detach().norm(dim=1), rtol=1e-12)
        assert torch.allclose(F.cosine_similarity(d, raw), torch.ones(len(d)).double())


def test_the_principal_plane_is_that_of_a_singular_value_decomposition() -> None:
    """Directions, shares and coordinates by SVD of the centred matrix; a point of the plane has no distance from it."""
    generator = torch.Generator().manual_seed(0)
    offsets_KN = torch.randn(5, 40, generator=generator, dtype=torch.float64)
    offsets_KN[-1] = 0
    found = principal(list(offsets_KN), 2)
    _, s, vt = torch.linalg.svd(offsets_KN - offsets_KN.mean(0), full_matrices=False)
    for i in range(2):
        assert abs(float(found.directions[i] @ vt[i])) == pytest.approx(1, abs=1e-10)
        assert found.shares[i] == pytest.approx(float(s[i] ** 2 / s.square().sum()), rel=1e-10)
    plane_DN = torch.stack(found.directions)
    assert torch.allclose(found.coordinates_KD, offsets_KN @ plane_DN.T, atol=1e-10)
    rest = (offsets_KN - offsets_KN @ plane_DN.T @ plane_DN).norm(dim=1)
    assert torch.allclose(found.rest_K, rest, atol=1e-7)
    line = principal([offsets_KN[0], 2 * offsets_KN[0], offsets_KN[-1]], 2)
    assert len(line.directions) == 1
    assert float(line.rest_K.max()) < 1e-6


def test_what_is_made_orthogonal_is() -> None:
    a, b = torch.randn(2, 30, dtype=torch.float64)
    c, share = orthogonal_to(a, b)
    assert abs(float(a @ c)) < 1e-12 * float(a.norm() * b.norm())
    assert torch.allclose(c + share * a, b)
