"""Layers, time and parameters of `jacobian` are those of closed forms and dense matrices."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvcli import analyse
from curvcli.analyses.jacobian.result import TimeJacobian
from curvcli.errors import UsageError
from curvcli.operators.jacobian.blocks import find_cuts
from curvcli.operators.jacobian.taps import Passage
from tests.oracles.dense import random_network
from tests.oracles.jacobians import EXACT, batch_of, context_for, reference, run


class Residual(nn.Module):
    """x + tanh(Wx): its inner modules lie beside a second way."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class Tower(nn.Module):
    """Residual blocks between two maps, with in-place activations and a container."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList(Residual(6) for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


def test_path_is_cut_where_every_way_goes_through() -> None:
    """Modules on a residual branch are not layers of the path; a container goes by its first child."""
    cuts, _ = find_cuts(Passage(Tower()), batch_of(torch.randn(3, 5)))
    assert [cut.name for cut in cuts] == ["stem.0", "stem.1", "blocks.0", "blocks.1", "head"]


def test_layers_multiply_to_the_whole() -> None:
    """Each layer's numbers are those of its own Jacobian, running ones those of the part before it."""
    torch.manual_seed(0)  # some weights let no signal through
    model = Tower().double()
    x = torch.randn(4, 5, dtype=torch.float64)
    result = run(model, x, per_layer=True)
    parts = [model.stem[0], model.stem[1], *model.blocks, model.head]
    h, running = x, torch.eye(5, dtype=torch.float64).expand(4, 5, 5)
    bound = torch.ones(4, dtype=torch.float64)
    for part, layer in zip(parts, result.layers, strict=True):
        own = reference(lambda s, part=part: part(s.clone()), h)  # type: ignore[misc]
        h, running = part(h.clone()).detach(), own @ running
        values = torch.linalg.svdvals(own)
        bound = bound * values[:, 0]
        truth = torch.linalg.svdvals(running)[:, 0]
        assert layer.spectral == pytest.approx(float(values[:, 0].mean()), rel=EXACT)
        assert layer.chi == pytest.approx(
            float(own.square().sum((1, 2)).mean() / own.shape[2]), rel=EXACT
        )
        assert layer.running_spectral == pytest.approx(float(truth.mean()), rel=EXACT)
        assert layer.running_bound == pytest.approx(float(bound.mean()), rel=EXACT)
        assert bool((bound >= truth * (1 - EXACT)).all())
    assert result.path is not None
    assert result.path.product_check is not None
    assert result.path.product_check <= EXACT
    assert result.path.looseness == pytest.approx(
        float((bound / torch.linalg.svdvals(running)[:, 0]).log().mean().exp()), rel=EXACT
    )


def test_isometry_is_flagged_only_where_it_holds() -> None:
    """Orthogonal layers scaled by 1.05 are isometric to 10 %, by 1.2 they are not."""
    for gain, expected in ((1.05, True), (1.2, False)):
        layer = nn.Linear(8, 8, bias=False).double()
        with torch.no_grad():
            layer.weight.copy_(gain * torch.linalg.qr(layer.weight)[0])
        result = run(layer, torch.randn(2, 8).double(), per_layer=True)
        assert result.path is not None
        assert result.path.isometry is expected


def dense_parameter_jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """∂(all outputs)/∂θ by torch.func."""
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    parts = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)))(parameters)
    rows = x.shape[0] * model(x).shape[1]
    return torch.cat([part.reshape(rows, -1) for part in parts.values()], 1)


@pytest.mark.parametrize("loss", [None, "cross_entropy", "mse"])
def test_tangent_kernel(loss: str | None) -> None:
    """All eigenvalues of K, its condition, and the Gauss-Newton spectrum of the loss."""
    model = random_network(2, [4, 6, 3], "tanh").double()
    x = torch.randn(5, 4, dtype=torch.float64)
    y = torch.randint(0, 3, (5,)) if loss == "cross_entropy" else torch.randn(5, 3).double()
    result = analyse("jacobian", context_for(model, (x, y), loss=loss), wrt="parameters").result
    j = dense_parameter_jacobian(model, x)
    values = torch.linalg.svdvals(j).square()
    ntk = result.ntk
    assert ntk is not None
    found = torch.tensor([e.value for e in ntk.eigenvalues], dtype=torch.float64)
    assert float((found - values).abs().max()) <= EXACT * float(values[0])
    assert ntk.trace == pytest.approx(float(values.sum()), rel=EXACT)
    assert ntk.rank == 15
    # The smallest eigenvalue is known to some eps of the largest.
    assert ntk.condition == pytest.approx(float(values[0] / values[-1]), rel=1e-8)
    assert result.spectral.mean == pytest.approx(float(values[0].sqrt()), rel=EXACT)
    if loss is None:
        assert ntk.gauss_newton is None
        return
    p = torch.softmax(model(x).detach(), 1)
    blocks = (
        [torch.diag(q) - torch.outer(q, q) for q in p]
        if loss == "cross_entropy"
        else [2 / 3 * torch.eye(3, dtype=torch.float64) for _ in p]
    )
    # Means: over 5 samples, or over 15 entries.
    ggn = j.T @ torch.block_diag(*(b / 5 for b in blocks)) @ j
    expected = torch.linalg.eigvalsh(ggn).flip(0)[:15]
    assert ntk.gauss_newton is not None
    gn = torch.tensor([e.value for e in ntk.gauss_newton], dtype=torch.float64)
    assert float((gn - expected).abs().max()) <= EXACT * float(expected[0])


def test_tangent_kernel_by_golub_kahan() -> None:
    """Leading eigenvalues of a kernel that is not formed, with errors that hold."""
    model = random_network(2, [6, 10, 8], "tanh").double()
    x = torch.randn(20, 6, dtype=torch.float64)
    result = run(model, x, wrt="parameters", method="golub-kahan", top=4)
    values = torch.linalg.svdvals(dense_parameter_jacobian(model, x)).square()
    assert result.ntk is not None
    assert result.ntk.rank is None
    for pair, true in zip(result.ntk.eigenvalues, values.tolist(), strict=False):
        assert pair.value is not None
        assert pair.residual is not None
        assert abs(pair.value - true) <= pair.residual
    assert result.ntk.trace is not None
    assert result.ntk.trace_standard_error is not None
    assert abs(result.ntk.trace - float(values.sum())) <= 5 * result.ntk.trace_standard_error


def test_tangent_kernel_with_batch_statistics() -> None:
    """Samples that depend on each other are differentiated together."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh())
    model = model.double()
    x = torch.randn(5, 3, dtype=torch.float64)
    result = run(model, x, wrt="parameters")
    values = torch.linalg.svdvals(dense_parameter_jacobian(model, x)).square()
    assert result.coupled
    assert result.ntk is not None
    found = [e.value for e in result.ntk.eigenvalues]
    assert found[0] == pytest.approx(float(values[0]), rel=EXACT)


@pytest.mark.parametrize("method", ["auto", "golub-kahan"])
def test_tangent_kernel_of_several_batches(method: str) -> None:
    """Batches of any sizes are one: the kernel and the Gauss-Newton spectrum are those of all samples."""
    model = random_network(2, [4, 6, 3], "tanh").double()
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randint(0, 3, (7,))
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    options: dict[str, Any] = {"wrt": "parameters", "method": method, "top": 3}
    found = analyse(
        "jacobian", context_for(model, *batches, loss="cross_entropy"), **options
    ).result.ntk
    assert found is not None
    assert found.samples == 7
    values = torch.linalg.svdvals(dense_parameter_jacobian(model, x)).square()
    for pair, true in zip(found.eigenvalues, values.tolist(), strict=False):
        assert pair.value is not None
        assert pair.residual is not None
        assert abs(pair.value - true) <= pair.residual + EXACT * float(values[0])
    if method == "auto":
        whole = analyse(
            "jacobian", context_for(model, (x, y), loss="cross_entropy"), **options
        ).result.ntk
        assert whole is not None
        assert whole.gauss_newton is not None
        assert found.gauss_newton is not None
        for pair, other in zip(found.gauss_newton, whole.gauss_newton, strict=True):
            assert pair.value == pytest.approx(other.value, abs=EXACT * float(values[0]))


def test_tangent_kernel_of_batches_that_do_not_fit_together_is_refused() -> None:
    """Samples of other batches with statistics of their own, or of other shapes: said, with what to do."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))
    x = torch.randn(4, 3)
    with pytest.raises(UsageError, match="depend on each other"):
        run(model, x, x, wrt="parameters")
    anywhere = nn.Sequential(nn.Conv1d(1, 2, 3), nn.AdaptiveAvgPool1d(1))
    with pytest.raises(UsageError, match="different shapes"):
        run(anywhere, torch.randn(2, 1, 8), torch.randn(2, 1, 9), wrt="parameters")


class Recurrent(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.layer(x)[0]
        return states[:, -1]


def linear_recurrence(matrix: Tensor, steps: int) -> TimeJacobian:
    """tanh at zero states and inputs: every step's Jacobian is exactly the recurrent matrix."""
    layer = nn.RNN(2, len(matrix), batch_first=True, bias=False).double()
    with torch.no_grad():
        layer.state_dict()["weight_hh_l0"].copy_(matrix)
    result = run(Recurrent(layer), torch.zeros(2, steps, 2, dtype=torch.float64))
    return result.time[0]


def test_lyapunov_of_a_scaled_rotation() -> None:
    """W = 0.9 Q: ‖∂h_T/∂h_t‖ = 0.9^lag, and every exponent is log 0.9."""
    q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    time = linear_recurrence(0.9 * q, 40)
    assert time.spectral is not None
    for lag, spectral, frobenius in zip(time.lags, time.spectral, time.frobenius, strict=True):
        assert spectral == pytest.approx(0.9**lag, rel=EXACT)
        assert frobenius == pytest.approx(math.sqrt(6) * 0.9**lag, rel=EXACT)
    assert time.lyapunov_spectrum == pytest.approx([math.log(0.9)] * 6, abs=EXACT)
    assert time.lyapunov_error == pytest.approx(0, abs=EXACT)
    assert time.memory_horizon == pytest.approx(-1 / math.log(0.9), rel=EXACT)


@pytest.mark.parametrize("symmetric", [True, False])
def test_lyapunov_is_the_spectral_radius(symmetric: bool) -> None:
    """λ₁ = log ρ(W) for a linear recurrence, normal or not, within the error given."""
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(8, 8, generator=generator, dtype=torch.float64) / 8**0.5
    w = (w + w.T) / 2 if symmetric else w
    time = linear_recurrence(w, 200)
    radius = float(torch.linalg.eigvals(w).abs().max())
    assert time.lyapunov is not None
    assert time.lyapunov_error is not None
    assert abs(time.lyapunov - math.log(radius)) <= time.lyapunov_error + 1e-9
    # An error that says nothing would pass too: it must be small against the exponent's scale.
    assert time.lyapunov_error < 0.05


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_time_jacobian_against_autograd(kind: str) -> None:
    """∂h_T/∂h_0 of the layer itself, with its initial state as the variable."""
    layer: Any = getattr(nn, kind)(3, 4, batch_first=True).double()
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    (time,) = run(Recurrent(layer), x).time
    widths = 2 if kind == "LSTM" else 1

    def final(flat: Tensor, i: int) -> Tensor:
        parts = [p[None, None] for p in flat.split(4)]
        _, state = layer(x[i : i + 1], tuple(parts) if widths == 2 else parts[0])
        return torch.cat([s.reshape(-1) for s in (state if widths == 2 else (state,))])

    spectra = [
        torch.linalg.svdvals(
            torch.autograd.functional.jacobian(
                lambda s, i=i: final(s, i), torch.zeros(4 * widths).double()
            )
        )
        for i in range(2)
    ]
    assert time.lags[-1] == 7
    assert time.spectral is not None
    assert time.unroll_error is not None
    assert time.unroll_error < EXACT
    assert time.spectral[-1] == pytest.approx(float(torch.stack(spectra)[:, 0].mean()), rel=1e-9)
    norm = torch.stack(spectra).square().sum(1).sqrt().mean()
    assert time.frobenius[-1] == pytest.approx(float(norm), rel=1e-9)


def test_ill_sample_model_forgets(samples: Path) -> None:
    """The long LSTM loses its state within its 100 steps."""
    from curvcli.analyses.shared.settings import resolve_target
    from curvcli.analyses.shared.subject import Subject

    few = {"batch-size": 4, "max-batches": 1}
    spec, _ = resolve_target(str(samples / "long_lstm.toml"), few, ("jacobian",))
    (time,) = analyse("jacobian", Subject(spec)).result.time
    assert time.frobenius[-1] is not None
    assert time.frobenius[-1] < 1e-8
    assert time.memory_horizon is not None
    assert time.memory_horizon < 100
