"""Layers in a cheaper form give torch's own values and derivatives, first and second."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvcli.objective.batch import Batch
from curvcli.operators.jacobian import taps
from curvcli.operators.jacobian.jacobian import Jacobian, explore
from curvcli.operators.jacobian.taps import Passage, Target
from tests.oracles.jacobians import batch_of, context_for, leading, reference, run

# Rounding over a few hundred terms.
SAME = {torch.float64: 1e-12, torch.float32: 1e-5}


def filled(model: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with statistics that are not those of a new layer."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model.double().eval()


def chain(*layers: nn.Module) -> nn.Module:
    """The layers, filled, with a flat output."""
    return filled(nn.Sequential(*layers, nn.Flatten()))


class Shared(nn.Module):
    """A convolution's output, changed in place, is used by more than its batch normalisation."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.inplace:
            y *= y.detach().cos()
        z = self.norm(y).relu_()
        pooled = nn.functional.max_pool2d(z, 2)
        return torch.cat([pooled.flatten(1), z.flatten(1), y.flatten(1), x.flatten(1)], 1)


class Folded(nn.Module):
    """What a convolution gives is viewed as rows, which asks for the order that torch gives it; maybe changed so."""

    def __init__(self, change: bool = False) -> None:
        super().__init__()
        self.change = change
        self.conv, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 81, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.change:
            y.view(len(x), -1).mul_(2)
        y = y.tanh()
        out: Tensor = self.last(y.view(len(x), -1))
        return out


Images = tuple[Callable[[], nn.Module], tuple[int, ...]]
NETWORKS: dict[str, Images] = {
    # Few channels and pixels: by the matrix.
    "matrix": (lambda: chain(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh()), (1, 5, 4)),
    "matrix, no bias, stride, dilation": (
        lambda: chain(nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(2, 1), dilation=2, bias=False)),
        (2, 6, 5),
    ),
    # Many pixels for the window: torch's own kernel.
    "kernel": (lambda: chain(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh()), (3, 9, 8)),
    "kernel, stride": (lambda: chain(nn.Conv2d(3, 4, 2, stride=2), nn.Tanh()), (3, 12, 10)),
    "kernel, dilation": (
        lambda: chain(nn.Conv2d(3, 4, (3, 2), padding=(1, 2), dilation=2), nn.Tanh()), (3, 9, 8),
    ),
    "kernel, padding wider than the window": (
        lambda: chain(nn.Conv2d(3, 4, 2, padding=2), nn.Tanh()), (3, 9, 8),
    ),
    "kernel, one pixel": (
        lambda: chain(nn.Conv2d(3, 18, 8), nn.ReLU(), nn.Conv2d(18, 4, 1), nn.Tanh()), (3, 8, 8),
    ),
    "views": (lambda: filled(Folded()), (3, 9, 9)),
    "changed through a view": (lambda: filled(Folded(True)), (3, 9, 9)),
    "circular": (
        lambda: chain(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.Tanh()),
        (2, 5, 5),
    ),
    "same": (lambda: chain(nn.Conv2d(2, 3, 3, padding="same"), nn.Tanh()), (2, 5, 5)),
    "groups": (lambda: chain(nn.Conv2d(4, 4, 3, groups=2), nn.Tanh()), (4, 5, 5)),
    "one axis": (
        lambda: chain(nn.Conv1d(2, 5, 3, padding=1), nn.BatchNorm1d(5), nn.Tanh()),
        (2, 7),
    ),
    "norm": (
        lambda: chain(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(True), nn.Conv2d(3, 4, 3, bias=False),
            nn.BatchNorm2d(4, affine=False), nn.Tanh(), nn.AdaptiveAvgPool2d(1),
        ),
        (1, 8, 8),
    ),
    "pool": (
        lambda: chain(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.Tanh(),
            nn.Conv2d(3, 3, 2), nn.ReLU(True), nn.MaxPool2d(2), nn.Tanh(),
        ),
        (1, 9, 9),
    ),
    "shared": (lambda: filled(Shared(False)), (2, 4, 4)),
    "in place": (lambda: filled(Shared(True)), (2, 4, 4)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", SAME)
@pytest.mark.parametrize("name", NETWORKS)
def test_first_and_second_derivatives(name: str, dtype: torch.dtype) -> None:
    """Products with J and Jᵀ, and all of J, against `torch.func` on the model as it is, in float64."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model, x = make(), torch.randn(3, *shape).double()
    expected, y = reference(model, x), model(x).detach()
    model, x = model.to(dtype), x.to(dtype)
    passage, batch = Passage(model), batch_of(x)
    structure, notes = explore(passage, batch)
    assert (structure.coupled, structure.differences, notes) == (False, None, [])
    op = Jacobian.of(passage, batch, structure)
    v = torch.randn(3, op.columns, dtype=dtype)
    forward = (expected @ v.double()[:, :, None])[:, :, 0]
    for found, truth in ((op.dense(), expected), (op.target, y), (op.jvp(v), forward)):
        tolerance = SAME[dtype] * float(truth.abs().max())
        assert torch.allclose(found.double(), truth, rtol=0, atol=tolerance)


class Copy(nn.Module):
    """The same values in another place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def test_every_pair_of_modules() -> None:
    """Hooks that read or replace what is between two layers are served: --wrt and --of, and the chain of layers."""
    torch.manual_seed(0)
    make, shape = NETWORKS["norm"]
    model, x = make(), torch.randn(3, *shape, dtype=torch.float64)
    assert isinstance(model, nn.Sequential)
    for first in range(len(model)):
        before = model[:first](x).detach()
        for last in range(first, len(model)):
            # The rectifier in place must not get what is differentiated.
            part = nn.Sequential(Copy(), *list(model)[first : last + 1])
            expected = reference(part, before)
            source = taps.Source("module-input", str(first))
            op = Jacobian.of(Passage(model, source, Target(str(last))), batch_of(x))
            assert torch.allclose(
                op.dense(), expected, rtol=0, atol=SAME[torch.float64] * float(expected.abs().max())
            )
    result = run(model, x, per_layer=True)
    assert [layer.kind for layer in result.layers] == [type(m).__name__ for m in model]
    assert result.path is not None
    assert result.path.product_check is not None
    assert result.path.product_check < SAME[torch.float64]


def test_parameters_keep_their_gradients() -> None:
    """--wrt parameters: the kernel of a convolutional network against `torch.func`."""
    torch.manual_seed(0)
    make, shape = NETWORKS["norm"]
    model, x = make(), torch.randn(3, *shape, dtype=torch.float64)
    context = context_for(model, x)
    from curvcli import analyse

    found = analyse("jacobian", context, wrt="parameters").result.ntk
    assert found is not None
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    rows: Any = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)).flatten())(
        parameters
    )
    j = torch.cat([r.flatten(1) for r in rows.values()], 1)
    expected = torch.linalg.eigvalsh(j @ j.T).flip(0)
    values = torch.tensor([e.value for e in found.eigenvalues], dtype=torch.float64)
    assert torch.allclose(
        values, expected[: len(values)], rtol=0, atol=SAME[torch.float64] * float(expected[0])
    )


class Checkpointed(nn.Module):
    """Its layers are run again in the backward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)


def test_checkpointed_layers() -> None:
    """Layers that are run again in the backward pass are run in the same form."""
    torch.manual_seed(0)
    make, shape = NETWORKS["norm"]
    model, x = make(), torch.randn(3, *shape, dtype=torch.float64)
    plain = torch.linalg.svdvals(reference(model, x))
    found = leading(run(Checkpointed(model), x))
    assert torch.allclose(
        found, plain[:, :5], rtol=0, atol=SAME[torch.float64] * float(plain.max())
    )


def test_not_a_number_stays() -> None:
    """A rectified, pooled convolution hides no activation that is not a number."""
    torch.manual_seed(0)
    make, shape = NETWORKS["pool"]
    model, x = make(), torch.randn(3, *shape, dtype=torch.float64)
    x[1] = torch.inf
    op = Jacobian.of(Passage(model), Batch(((x,), {}, None), 3))
    op.dense()
    assert op.finite_S.tolist() == [True, False, True]
