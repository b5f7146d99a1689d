"""`backprop`: the identities hold for every kind of layer, and wrong gradients are found and named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvcli import analyse
from curvcli.analyses.backprop.result import BackpropResult
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.settings import resolve_target
from curvcli.analyses.shared.subject import Subject
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective
from tests.oracles.samples import objective_for


def check(
    model: nn.Module, x: Tensor, **options: Any
) -> tuple[BackpropResult, Answer[BackpropResult]]:
    """The analysis on L = mean of squares of the outputs, a loss without anything of its own."""
    objective = make_objective(
        model, [Batch(x, len(x))], lambda m, d: (m(d).square().sum(), float(len(d)))
    )
    answer = analyse("backprop", Subject(objective=objective), **options)
    return answer.result, answer


def layers() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    return {
        "linear": (nn.Linear(4, 3), (5, 4)),
        "linear on a sequence, no bias": (nn.Linear(4, 3, bias=False), (5, 7, 4)),
        "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (5, 4, 9)),
        "conv1d circular": (nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (5, 4, 9)),
        "conv2d": (nn.Conv2d(2, 4, (3, 2), stride=(2, 1), dilation=(1, 2)), (5, 2, 8, 9)),
        "conv2d in groups": (nn.Conv2d(4, 8, 3, groups=2, padding=2), (5, 4, 6, 6)),
        "conv2d depthwise, same": (nn.Conv2d(4, 4, 3, groups=4, padding="same"), (5, 4, 6, 6)),
        "conv2d reflected": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (5, 2, 6, 6)),
        "conv3d": (nn.Conv3d(2, 3, 2, stride=2), (5, 2, 5, 4, 6)),
        "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (5, 4, 7)),
        "transposed 2d in groups": (nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2), (5, 4, 5, 5)),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(layers()))
def test_identities_hold_for_every_kind_of_layer(name: str) -> None:
    """By hand against autograd in float64: both round at 1e-16 times the number of terms, 1e-13 at most."""
    layer, shape = layers()[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    result, answer = check(layer, x)
    assert len(result.identities) == sum(1 for _ in layer.parameters())
    for identity in result.identities:
        assert identity.norm > 0
        assert identity.error <= 1e-13
    assert result.passed
    assert not answer.findings


def test_shared_repeated_and_in_place_layers_are_summed() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed = nn.Embedding(9, 4)
            self.twice = nn.Linear(4, 4)
            self.act = nn.ReLU(inplace=True)
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.act(self.twice(self.embed(tokens)))
            out: Tensor = self.head(self.act(self.twice(x)))
            return out

    result, _ = check(Shared(), torch.arange(9).repeat(2, 1))
    by_name = {i.parameter: i for i in result.identities}
    assert set(by_name["embed.weight"].layers) == {"embed", "head"}
    assert all(i.error <= 1e-13 for i in result.identities)
    assert result.passed


def test_a_gradient_changed_inside_a_layer_is_found_by_differences() -> None:
    """A hook that clips the weight's gradient, as training code leaves behind, in a forward of its own."""

    class Halved(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight * 1.0
            if weight.requires_grad:
                weight.register_hook(lambda g: 0.5 * g)
            return nn.functional.linear(x, weight, self.bias)

    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), Halved(2, 1))
    result, answer = check(model, torch.randn(6, 3))
    assert {s.parameter for s in result.slopes if not s.passed} == {"2.weight"}
    assert {(f.rule, f.subject) for f in answer.findings} == {("backprop.slope", "2.weight")}


def test_a_detached_branch_is_named() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x))
            out: Tensor = self.c(h.detach() + self.b(h.detach()))
            return out

    result, answer = check(Detached(), torch.randn(6, 3))
    assert {s.parameter for s in result.slopes if not s.passed} == {"a.weight", "a.bias"}
    assert {f.subject for f in answer.findings} == {"a.weight", "a.bias"}
    assert any("the fault lies behind 'a.bias'" in note for note in answer.notes)


def sample(path: Path) -> Subject:
    spec, _ = resolve_target(str(path), {}, ("backprop",))
    return Subject(spec)


def test_the_wrong_sample_is_caught_and_every_other_one_passes(samples: Path) -> None:
    for path in sorted(samples.glob("*.toml")):
        context = sample(path)
        answer = analyse("backprop", context, samples=4)
        result = answer.result
        assert result.passed == (path.stem != "wrong_backward"), path.stem
        if not result.passed:
            assert {f.subject for f in answer.findings} == {"fc1.weight", "fc1.bias"}


def test_rows_that_no_sample_looks_up_have_a_gradient_of_zero() -> None:
    """Vectors leave them out; the directions of the differences do too."""

    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.out = nn.Embedding(100, 4), nn.Linear(4, 3)

        def forward(self, ids: Tensor) -> Any:
            return self.out(self.embed(ids).mean(1))

    result, answer = check(Sparse(), torch.arange(8).view(4, 2))
    assert result.passed
    assert not answer.findings


def test_what_is_no_stock_layer_has_no_identity() -> None:
    """A forward of its own, or a weight that is computed: δᵀx is not their gradient."""

    class Positions(nn.Embedding):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.arange(x.shape[1])).expand(len(x), -1, -1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.positions = Positions(8, 2)
            self.mix = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
            self.out = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Any:
            return self.out(torch.tanh(self.mix(x + self.positions(x))).mean(1))

    result, answer = check(Net(), torch.randn(6, 5, 2))
    assert {i.parameter for i in result.identities} == {"out.weight", "out.bias"}
    assert result.passed
    assert not answer.findings


def test_single_precision_inside_is_no_fault_of_the_gradient() -> None:
    """What is written into float32, and programs that ask for it; a wrong gradient is found all the same."""
    program = torch.jit.trace(
        lambda h: torch.softmax(h, -1, dtype=torch.float32), (torch.zeros(1, 8).double(),)
    )

    class Single(nn.Module):
        def __init__(self, factor: float, traced: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.traced = traced
            self.factor, self.a, self.out = factor, nn.Linear(8, 8), nn.Linear(8, 3)
            self.memory = torch.zeros(6, 8)

        def forward(self, x: Tensor) -> Any:
            h = self.a(x)
            if h.requires_grad:
                h.register_hook(lambda g: self.factor * g)
            if self.traced:
                return self.out(program(h).to(x.dtype))
            kept = self.memory[: len(x)].clone().copy_(torch.softmax(h, -1))
            return self.out(kept.to(x.dtype))

    x = torch.randn(6, 8)
    for traced in (False, True):
        result, answer = check(Single(1.0, traced), x)
        assert result.passed
        assert any("less than double precision" in note for note in answer.notes)
        assert not check(Single(0.5, traced), x)[0].passed


def test_a_loss_that_differentiates_the_network_has_no_identity() -> None:
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))

    def terms(m: nn.Module, d: Any) -> tuple[Tensor, float]:
        with torch.enable_grad():
            x = d.detach().requires_grad_()
            (slope,) = torch.autograd.grad(m(x).sum(), x, create_graph=True)
            return slope.square().sum(), float(len(x))

    objective = make_objective(model, [Batch(torch.rand(8, 2), 8)], terms)
    answer = analyse("backprop", Subject(objective=objective))
    assert answer.result.passed
    assert not answer.result.identities
    assert any("takes derivatives itself" in note for note in answer.notes)


class _Corner(nn.Module):
    """Σ relu(w x) at w = 0: autograd's slope is 0, the differences to both sides are 1 and 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.w * x).sum(1, keepdim=True)


def test_a_kink_at_the_weights_accuses_nobody() -> None:
    """Both sides disagree, so the slope is undecided with a note, and no finding is made."""
    objective = objective_for(_Corner(), torch.rand(8, 2) + 1, torch.ones(8, 1), "mse")
    answer = analyse("backprop", Subject(objective=objective))
    (slope,) = answer.result.slopes
    assert (slope.passed, slope.decided) == (False, False)
    assert not answer.findings
    assert any("cannot be decided here" in note for note in answer.notes)


def test_a_wrong_backward_is_still_accused() -> None:
    """A gradient that is twice the slope differs from all differences, which agree with each other."""

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(_context: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(_context: Any, gradient: Tensor) -> Tensor:
            return 2 * gradient

    class Wrong(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = Doubled.apply(super().forward(x))
            return out

    objective = objective_for(Wrong(3, 1), torch.randn(8, 3), torch.randn(8, 1), "mse")
    answer = analyse("backprop", Subject(objective=objective))
    assert {f.rule for f in answer.findings} == {"backprop.slope"}
    assert all(s.decided for s in answer.result.slopes)
