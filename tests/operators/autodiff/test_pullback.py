"""Products with the transposed Jacobian are those of `torch.func`, and need no import that costs time."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from curvcli.operators.autodiff.pullback import pullback, pullbacks
from tests.conftest import SAMPLES

# Rounding of float64 over a few terms.
SAME = 1e-14


def network(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two outputs of two inputs."""
    return torch.sin(a @ b), (a * a).sum(0)


def given() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], list[Tensor]]:
    """Inputs, outputs and vectors."""
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (4, 2))
    )
    inputs = a.requires_grad_(), b.requires_grad_()
    outputs = network(*inputs)
    return inputs, outputs, [torch.randn(y.shape, generator=generator).double() for y in outputs]


def test_one_vector() -> None:
    inputs, outputs, vectors = given()
    pull = torch.func.vjp(network, *(x.detach() for x in inputs))[1]
    for found, expected in zip(
        pullback(outputs, inputs, vectors), pull(tuple(vectors)), strict=True
    ):
        assert torch.allclose(found, expected, rtol=0, atol=SAME)


def test_several_vectors_at_once() -> None:
    inputs, outputs, vectors = given()
    several = [torch.stack([v, -2 * v, v.cos()]) for v in vectors]
    found = pullbacks(outputs, inputs, several)
    for k in range(3):
        expected = pullback(outputs, inputs, [v[k] for v in several])
        for together, alone in zip(found, expected, strict=True):
            assert torch.allclose(together[k], alone, rtol=0, atol=SAME)


def test_products_are_differentiable_in_the_vectors_and_in_the_inputs() -> None:
    inputs, outputs, vectors = given()
    u = [v.requires_grad_() for v in vectors]
    pulled = pullback(outputs, inputs, u, create_graph=True)
    pushed = pullback(pulled, u, [x.detach() for x in inputs])
    expected = torch.func.jvp(network, tuple(x.detach() for x in inputs), inputs)[1]
    for found, truth in zip(pushed, expected, strict=True):
        assert torch.allclose(found, truth, rtol=0, atol=SAME * 100)
    (second,) = pullback([pulled[0]], [inputs[1]], [torch.ones_like(pulled[0])])

    def first(b: Tensor) -> Tensor:
        pull = torch.func.vjp(network, inputs[0].detach(), b)[1]
        total: Tensor = pull(tuple(v.detach() for v in vectors))[0].sum()
        return total

    assert torch.allclose(second, torch.func.grad(first)(inputs[1].detach()), rtol=0, atol=1e-13)


def test_what_is_not_connected_is_zero() -> None:
    inputs, outputs, vectors = given()
    stranger = torch.ones(5, requires_grad=True)
    assert not pullback(outputs, [stranger], vectors)[0].any()
    several = pullbacks(outputs, [inputs[0], stranger], [v[None] for v in vectors])
    assert several[1].shape == (1, 5)
    assert not several[1].any()


def test_a_vector_of_another_shape_is_refused() -> None:
    inputs, outputs, vectors = given()
    wrong = [vectors[0].T, vectors[1]]
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for \(3, 2\)"):
        pullback(outputs, inputs, wrong)
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for \(3, 2\)"):
        pullbacks(outputs, inputs, [v[None] for v in wrong])


@pytest.mark.parametrize("command", ["hessian", "jacobian", "gradients", "saddle", "taylor"])
def test_neither_the_compiler_nor_computer_algebra_is_imported(command: str) -> None:
    """Together they take a second, which is more than most analyses of a small network."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['curvcli', {command!r}, {str(SAMPLES / 'linear_regression.toml')!r}]\n"
        "try: runpy.run_module('curvcli', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch._dynamo', 'sympy') if m in sys.modules], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] True"
