"""`jacobian` stays right or says why not: missing derivatives, bad numbers, memory, budgets, wrong input."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvcli import analyse
from curvcli.analyses.shared.settings import resolve_target
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import CurvError, MemoryLimitError, ModelError, NonFiniteError, UsageError
from tests.oracles.dense import random_network
from tests.oracles.jacobians import EXACT, context_for, leading, reference, run


def agrees(found: Any, expected: Tensor, scale: float | None = None) -> bool:
    """Equal to rounding of float64, relative to the largest value."""
    given = torch.as_tensor(found, dtype=torch.float64)
    size = scale if scale is not None else float(expected.abs().max())
    return bool((given - expected).abs().max() <= EXACT * max(size, 1e-300))


class Frozen(torch.autograd.Function):
    """x³ with a backward that cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grads[0]


class Cube(nn.Module):
    """A linear layer and then `Frozen`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(30, 20).double()

    def forward(self, x: Tensor) -> Any:
        return Frozen.apply(self.linear(x))


@pytest.mark.parametrize("method", ["dense", "golub-kahan"])
def test_missing_second_derivative(method: str) -> None:
    """Formed matrices need none; Golub-Kahan falls back on differences of the outputs and says so."""
    model, x = Cube(), torch.randn(3, 30).double()
    context = context_for(model, x)
    answer = analyse("jacobian", context, method=method, tol=1e-6)
    result = answer.result
    y = model.linear(x).detach()
    dense = 3 * y[:, :, None] ** 2 * model.linear.weight.detach()
    values = torch.linalg.svdvals(dense)[:, :5]
    assert any("second derivative is missing" in note for note in answer.notes)
    if method == "dense":
        assert agrees(leading(result), values)
    # Central differences in float64 err by eps^⅔ ≈ 4e-11 times the third derivative.
    assert bool(((leading(result) - values).abs() <= 1e-8 * values[:, :1]).all())


class Root(nn.Module):
    """√ of a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(self.linear(x))


@pytest.mark.parametrize("method", ["dense", "golub-kahan"])
def test_one_sample_not_finite(method: str) -> None:
    """√ at 0 has an infinite slope: that sample is null with a finding, the others are right."""
    model = Root()
    with torch.no_grad():
        model.linear.weight.copy_(torch.eye(2))
        model.linear.bias.zero_()
    x = torch.tensor([[1.0, 4.0], [0.0, 1.0], [0.25, 1.0]], dtype=torch.float64)
    context = context_for(model, x)
    answer = analyse("jacobian", context, method=method)
    result = answer.result
    assert result.samples[1].spectral is None
    assert result.samples[0].spectral == pytest.approx(0.5, rel=1e-12)
    assert result.samples[2].spectral == pytest.approx(1.0, rel=1e-12)
    assert [f.rule for f in answer.findings][:1] == ["jacobian.nonfinite"]


def test_memory_bounds_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small --memory cuts the batch into pieces; the answer stays the same, too small a one is an error."""
    from curvcli.machine import memory
    from curvcli.machine.meter import MemoryMeter
    from curvcli.operators.jacobian.chunks import Chunks
    from curvcli.operators.jacobian.jacobian import explore
    from curvcli.operators.jacobian.spectra import Settings
    from curvcli.operators.jacobian.taps import Passage
    from tests.oracles.jacobians import batch_of

    model = random_network(0, [50, 400, 400, 5], "tanh")
    batch = batch_of(torch.randn(512, 50))
    passage = Passage(model)
    structure, _ = explore(passage, batch)
    room = 2_000_000
    whole = list(Chunks(passage, [batch], structure, Settings()))
    # The size of the process itself comes and goes by more than the room.
    monkeypatch.setattr(memory, "used_memory", lambda _: 0)
    chunks = Chunks(passage, [batch], structure, Settings(), memory=room)
    assert chunks.micro_batch < 512
    with MemoryMeter() as meter:
        pieces = list(chunks)
    assert len(pieces) > 1
    assert meter.peak <= room
    found = torch.cat([p.spectra.frobenius_S for p in pieces])
    # The same sums in pieces of another size: float32 rounding.
    assert torch.allclose(found, whole[0].spectra.frobenius_S, rtol=1e-5)
    with pytest.raises(MemoryLimitError):
        Chunks(passage, [batch], structure, Settings(), memory=1)


_PEAK = """
import sys
import torch
from torch import nn
from tests.oracles.jacobians import context_for
from curvcli import analyse
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.Tanh(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
)
def run(samples, **memory):
    context = context_for(model, torch.randn(samples, 1, 32, 32), **memory)
    return analyse("jacobian", context, method=sys.argv[1], top=1, max_matvecs=12)
run(2)
def peak():
    # ru_maxrss would begin at the size of the process that started this one.
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
limit = peak() + 50_000_000
result = run(96, memory=f"{limit}B")
print(result.result.micro_batch, peak(), limit)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the process' peak is read from /proc")
@pytest.mark.parametrize("method", ["dense", pytest.param("golub-kahan", marks=pytest.mark.full)])
def test_the_process_stays_within_its_memory(method: str) -> None:
    """The peak of the whole process, as the system sees it, not only of its tensors."""
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, method], capture_output=True, text=True, check=True
    )
    micro, peak, limit = map(int, done.stdout.split())
    assert micro < 96
    # The allocator's own pools come and go by some megabytes.
    assert peak <= 1.05 * limit


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"wrt": "nope"}, UsageError, "neither a module nor an input"),
        ({"of": "nope"}, ModelError, "no module"),
        ({"wrt": "2", "of": "0"}, ModelError, "does not depend"),
        ({"output_key": "5"}, UsageError, "no part"),
        ({"sample": [99]}, UsageError, "there are 3 samples"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[CurvError], text: str) -> None:
    """What was expected and found, and what mends it."""
    model = random_network(0, [4, 5, 2], "tanh")
    with pytest.raises(error, match=text) as caught:
        run(model, torch.randn(3, 4), **options)
    assert caught.value.hint


def test_bad_numbers() -> None:
    """NaN in weights or data, and networks that roll dice, are refused."""
    model = random_network(0, [4, 5, 2], "tanh")
    with pytest.raises(NonFiniteError, match="data"):
        run(model, torch.full((3, 4), torch.nan))

    class Dice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(1)

    with pytest.raises(ModelError, match="random"):
        run(Dice(4, 2), torch.randn(3, 4))
    with torch.no_grad():
        next(model.parameters())[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="weights"):
        run(model, torch.randn(3, 4))


def test_full_needs_a_small_matrix() -> None:
    """--full refuses what nobody can read."""
    with pytest.raises(UsageError, match="4,096 entries"):
        run(nn.Linear(200, 60), torch.randn(2, 200), full=True)


def test_budget_ends_the_run() -> None:
    """Too few products: what is known so far, marked, and none of it called converged that is not."""
    context = context_for(nn.Linear(200, 150).double(), torch.randn(2, 200).double())
    answer = analyse("jacobian", context, max_matvecs=10)
    result = answer.result
    assert result.status == "max_matvecs"
    assert not answer.complete
    assert not all(v.converged for s in result.samples for v in s.singular_values)
    true = torch.linalg.svdvals(next(context.target.model.parameters()).detach())
    for sample in result.samples:
        for v in sample.singular_values:
            assert v.value is not None
            assert v.residual is not None
            # Some singular value lies within the residual, converged or not.
            assert float((true - v.value).abs().min()) <= v.residual


def test_same_seed_same_digits() -> None:
    """The answer depends on the seed only, not on earlier runs."""
    model, x = nn.Linear(100, 90).double(), torch.randn(3, 100).double()
    assert run(model, x) == run(model, x)


def test_rounding_of_a_chaotic_network_is_said(samples: Path) -> None:
    """20 tanh layers with gain 6 in float32: digits that rounding destroys are not called converged."""
    few = {"batch-size": 8, "max-batches": 1}
    spec, _ = resolve_target(str(samples / "exploding.toml"), few, ("jacobian",))
    context = Subject(spec)
    answer = analyse("jacobian", context)
    assert "jacobian.rounding" in [f.rule for f in answer.findings]
    assert "jacobian.kinks" not in [f.rule for f in answer.findings]


def test_rounding_of_coupled_samples_is_no_kink(samples: Path) -> None:
    """The same network where the samples of a batch depend on each other: what moves is rounding there too."""
    few = {"batch-size": 4, "max-batches": 1}
    spec, _ = resolve_target(str(samples / "exploding.toml"), few, ("jacobian",))
    given = Subject(spec)

    class Coupled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = given.target.model

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x - 0.01 * x.mean(0))
            return out

    context = context_for(Coupled(), given.target.model_batches[0].data[0][0])
    answer = analyse("jacobian", context)
    result = answer.result
    assert result.coupled
    assert [s.jump for s in result.samples] == [None]
    assert "jacobian.kinks" not in [f.rule for f in answer.findings]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("exact", [64, 2])
def test_fixed_batch_statistics(affine: bool, exact: int) -> None:
    """In evaluation mode batch normalisation is a multiply-add here: the same Jacobian as torch's own."""
    norm = nn.BatchNorm1d(6, affine=affine).double()
    model = nn.Sequential(nn.Linear(4, 6).double(), norm, nn.Tanh(), nn.Linear(6, 3).double())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for t in (norm.running_mean, norm.running_var, *norm.parameters()):
            assert t is not None
            t.copy_(torch.rand(6, generator=generator) + 0.5)
    x = torch.randn(5, 4, generator=generator).double()
    result = run(model, x, exact=exact, tol=1e-9)
    values = torch.linalg.svdvals(reference(model.eval(), x))
    assert agrees(leading(result), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_on_a_kink_is_told_apart_from_rounding(dtype: torch.dtype) -> None:
    """f(x) = W max(x₁, x₂) with x₁ = x₂: either column is a Jacobian, and they are √2 ‖W‖ apart."""

    class Largest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([[3.0], [4.0]], dtype=dtype))

        def forward(self, x: Tensor) -> Tensor:
            largest = nn.functional.max_pool1d(x[:, None], 2)[:, 0]
            return largest @ self.w.T

    tied = torch.rand(32, 1, generator=torch.Generator().manual_seed(0)).expand(32, 2)
    x = torch.cat([tied, tied + torch.tensor([0.0, 1.0])]).to(dtype)
    context = context_for(Largest(), x)
    answer = analyse("jacobian", context)
    result = answer.result
    jumps = [sample.jump for sample in result.samples]
    assert jumps[32:] == [None] * 32
    # A move of both entries by ± eps swaps them in a quarter of all cases, and two moves are made.
    seen = [jump for jump in jumps if jump is not None]
    assert len(seen) > 2
    # E‖ΔJᵀz‖² = ‖ΔJ‖²: with z = (±1, ±1) it is 2 (3 ± 4)².
    for jump in seen:
        assert jump in [pytest.approx(2**0.5 * size, rel=1e-6) for size in (1, 7)]
    kinks = next(f for f in answer.findings if f.rule == "jacobian.kinks")
    assert kinks.value == len(seen)
    assert [f.rule for f in answer.findings if f.severity != "note"] == []
    for sample in result.samples:
        assert sample.spectral == pytest.approx(5, rel=1e-6)
        residual = sample.singular_values[0].residual
        assert residual is not None
        assert residual < 1e-4
