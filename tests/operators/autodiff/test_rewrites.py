"""Rewritten layers have the values, first and second derivatives of torch's own, in float64."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvcli.operators.autodiff.rewrites import attention as rewritten_attention
from curvcli.operators.autodiff.rewrites.registry import Rewritten

MEAN = torch.linspace(-1, 1, 5, dtype=torch.float64)
VAR = torch.linspace(0.5, 2, 5, dtype=torch.float64)
LAYERS: dict[str, Callable[..., Tensor]] = {
    "gelu": lambda x, w, b: F.gelu(x * w + b),
    "gelu tanh": lambda x, w, b: F.gelu(x * w + b, approximate="tanh"),
    "silu": lambda x, w, b: F.silu(x * w + b),
    "layer norm": lambda x, w, b: F.layer_norm(x, (5,), w, b),
    "layer norm, large eps": lambda x, w, b: F.layer_norm(x, (5,), w, b, 0.3),
    "layer norm, no affine": lambda x, w, b: F.layer_norm(x * w + b, (5,)),
    "layer norm, two dimensions": lambda x, w, b: F.layer_norm(
        x, (3, 5), w.expand(3, 5), b.expand(3, 5)
    ),
    "batch norm": lambda x, w, b: F.batch_norm(x.mT, MEAN, VAR, w, b, False, 0.1, 1e-3),
    "batch norm, flat": lambda x, w, b: F.batch_norm(x[:, 0], MEAN, VAR, w, b),
    "batch norm, no affine": lambda x, w, b: F.batch_norm((x * w + b).mT, MEAN, VAR),
    "gelu by keyword": lambda x, w, b: F.gelu(input=x * w + b),
    "silu by keyword": lambda x, w, b: F.silu(input=x * w + b),
    "layer norm by keyword": lambda x, w, b: F.layer_norm(
        input=x, normalized_shape=(5,), weight=w, bias=b
    ),
    "batch norm by keyword": lambda x, w, b: F.batch_norm(
        input=x.mT, running_mean=MEAN, running_var=VAR, weight=w, bias=b
    ),
    "convolution by keyword": lambda x, w, b: F.conv1d(
        input=x, weight=(w * b[:3, None])[:, None, :].expand(3, 3, 5), bias=b[:3], padding=2
    ),
    "attention by keyword": lambda x, w, b: F.scaled_dot_product_attention(
        query=x * w, key=x + b, value=x * b
    ),
    "attention": lambda x, w, b: F.scaled_dot_product_attention(x * w, x + b, x * b),
    "attention, causal": lambda x, w, b: F.scaled_dot_product_attention(
        x * w, x + b, x * b, is_causal=True, scale=0.7
    ),
    "attention, other lengths and widths": lambda x, w, b: F.scaled_dot_product_attention(
        x[:, :2] * w, x + b, (x * b)[..., :4]
    ),
    "attention, more queries": lambda x, w, b: F.scaled_dot_product_attention(
        x * w, (x + b)[:, :2], (x * b)[:, :2], is_causal=True
    ),
    "attention, added mask": lambda x, w, b: F.scaled_dot_product_attention(
        x * w, x + b, x * b, MEAN[:3] * VAR[:3, None]
    ),
    "attention, mask with an empty row": lambda x, w, b: F.scaled_dot_product_attention(
        x * w, x + b, x * b, torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1]]).bool()
    ),
    "attention, heads and padding": lambda x, w, b: F.scaled_dot_product_attention(
        (x * w).view(2, 2, 3, 5), (x + b).view(2, 2, 3, 5), (x * b).view(2, 2, 3, 5),
        torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()[:, None, None],
    ),
    "attention, learned mask": lambda x, w, b: F.scaled_dot_product_attention(
        x * w, x + b, x * b, w[:3, None] * b[:3]
    ),
}  # fmt: skip


def product(layer: Callable[..., Tensor], ours: bool) -> list[Tensor]:
    """Output, gradient and Hessian-vector product of a scalar function through the layer."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = [draw(4, 3, 5), draw(5), draw(5)]
    for t in inputs:
        t.requires_grad_()
    vectors = [draw(*t.shape) for t in inputs]

    def scalar() -> Tensor:
        y = layer(*inputs)
        return (y * torch.linspace(-1, 2, y.shape[-1], dtype=y.dtype)).sin().sum() + y.pow(3).mean()

    with Rewritten() if ours else sdpa_kernel(SDPBackend.MATH):
        total = scalar()
    gradients = torch.autograd.grad(total, inputs, create_graph=True)
    products = torch.autograd.grad(gradients, inputs, vectors, retain_graph=True)
    again = torch.autograd.grad(gradients, inputs, vectors)
    assert all(torch.equal(a, b) for a, b in zip(products, again, strict=True))
    return [total, *gradients, *products]


@pytest.mark.parametrize("name", LAYERS)
def test_rewritten_layers_have_the_same_derivatives(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However small, and in several pieces.
    monkeypatch.setattr(rewritten_attention, "_PIECE", 20)
    for ours, theirs in zip(product(LAYERS[name], True), product(LAYERS[name], False), strict=True):
        # A few hundred operations of float64 between values of order one.
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_rewritten_layers_are_used_and_leave_other_cases_alone() -> None:
    x = torch.randn(4, 5, requires_grad=True)
    with Rewritten():
        names = {
            "gelu": F.gelu(x).grad_fn,
            "module": nn.GELU()(x).grad_fn,
            "norm": nn.LayerNorm(5)(x).grad_fn,
            "batch": nn.BatchNorm1d(5).eval()(x).grad_fn,
            "train": nn.BatchNorm1d(5)(x).grad_fn,
            "attention": F.scaled_dot_product_attention(x[None], x[None], x[None]).grad_fn,
            "dropout": F.scaled_dot_product_attention(x[None], x[None], x[None], None, 0.5).grad_fn,
        }
        with torch.no_grad():
            assert F.gelu(x).grad_fn is None
        half = F.gelu(x.half())
        per_sample = torch.func.vmap(torch.func.grad(lambda v: F.gelu(v).sum()))(x)
    kinds = {name: type(f).__name__ for name, f in names.items()}
    assert kinds["gelu"] == kinds["module"] == "_PointwiseBackward"
    assert kinds["norm"] == "_LayerNormBackward"
    assert kinds["batch"] == "_ChannelNormBackward"
    assert kinds["train"] == "NativeBatchNormBackward0"
    assert kinds["attention"] == "ViewBackward0"
    assert not kinds["dropout"].startswith(("View", "_Attention"))
    assert half.dtype == torch.float16
    torch.testing.assert_close(per_sample, torch.autograd.grad(F.gelu(x).sum(), x)[0])
