"""`jacobian` has the singular values of `torch.func.jacrev` in float64 and of closed forms."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvcli import analyse
from curvcli.analyses.jacobian.command import QUESTION
from curvcli.analyses.shared.settings import resolve_target
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import UsageError
from curvcli.report.json import render
from tests.oracles.dense import ACTIVATIONS, random_network
from tests.oracles.jacobians import EXACT, context_for, leading, norms, reference, residuals, run


def agrees(found: Any, expected: Tensor, scale: float | None = None) -> bool:
    """Equal to rounding of float64, relative to the largest value."""
    given = torch.as_tensor(found, dtype=torch.float64)
    size = scale if scale is not None else float(expected.abs().max())
    return bool((given - expected).abs().max() <= EXACT * max(size, 1e-300))


@settings(max_examples=220, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    samples=st.integers(1, 5),
    method=st.sampled_from(["dense", "golub-kahan"]),
)
def test_random_networks(
    seed: int, sizes: list[int], activation: str, samples: int, method: str
) -> None:
    """Every norm and leading singular value is that of the matrix from jacrev, by either method."""
    model = random_network(seed, sizes, activation).double()
    x = torch.randn(samples, sizes[0], generator=torch.Generator().manual_seed(seed)).double()
    result = run(model, x, method=method, top=3, time=False)
    dense = reference(model, x)
    values = torch.linalg.svdvals(dense)[:, :3]
    scale = float(values.max())
    if method == "dense":
        assert agrees(norms(result), torch.linalg.matrix_norm(dense), scale)
        assert agrees(leading(result), values, scale)
    # These spaces are exhausted or converged: the k-th value is the k-th, within its residual.
    found, slack = leading(result), residuals(result)
    assert bool(((found - values).abs() <= slack + EXACT * scale).all())


class Softmax(nn.Module):
    """p = softmax(x); holds a parameter only to have a dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.scale * x, 1)


def test_softmax_is_diag_p_minus_pp() -> None:
    """--full prints diag(p) − ppᵀ; it is singular, and no condition number is made up."""
    x = torch.randn(3, 4, dtype=torch.float64)
    result = run(Softmax(), x, full=True)
    for i, matrix in enumerate(result.matrices):
        p = torch.softmax(x[i], 0)
        assert agrees(matrix.entries, torch.diag(p) - torch.outer(p, p))
    for sample in result.samples:
        assert sample.condition is None
        assert sample.condition_at_least is not None
        assert sample.condition_at_least > 1e12


def test_linear_map() -> None:
    """The Jacobian of a linear map is its matrix, for every sample."""
    model = nn.Linear(5, 3).double()
    result = run(model, torch.randn(4, 5, dtype=torch.float64), full=True)
    values = torch.linalg.svdvals(model.weight.detach())
    assert agrees(result.matrices[0].entries, model.weight.detach())
    for sample in result.samples:
        assert agrees(sample.condition, values[0] / values[-1])
        assert agrees(sample.smallest, values[-1], float(values[0]))
        p = values / values.sum()
        assert agrees(sample.effective_rank, torch.exp(-(p * p.log()).sum()))
        assert agrees(sample.stable_rank, values.square().sum() / values[0] ** 2)


@pytest.mark.parametrize("method", ["dense", "golub-kahan"])
def test_orthogonal_network(method: str) -> None:
    """All singular values of a product of orthogonal maps are 1: k = 5 finds five copies."""
    layers = [nn.Linear(20, 20).double() for _ in range(4)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.linalg.qr(layer.weight)[0])
    x = torch.randn(3, 20, dtype=torch.float64)
    result = run(nn.Sequential(*layers), x, method=method, per_layer=True)
    assert agrees(leading(result), torch.ones(3, 5, dtype=torch.float64))
    for sample in result.samples:
        assert sample.frobenius is not None
        assert sample.frobenius_standard_error is not None
        # An estimate unless the matrix is formed: within 5 standard errors, and the seed is fixed.
        error = 5 * sample.frobenius_standard_error + EXACT
        assert abs(sample.frobenius - math.sqrt(20)) <= error
    assert result.path is not None
    if method == "dense":
        assert result.path.isometry is True
        assert all(layer.isometry for layer in result.layers)
        assert agrees([layer.chi for layer in result.layers], torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("exact", [200, 8])
def test_circular_convolution(exact: int) -> None:
    """Singular values of a circular convolution are those of its Fourier transform, frequency by frequency."""
    conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False).double()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    result = run(conv, x, exact=exact, top=6, tol=1e-10, max_matvecs=400)
    transfer = np.fft.fft2(conv.weight.detach().numpy(), s=(6, 6))
    values = np.sort(np.linalg.svd(transfer.transpose(2, 3, 0, 1), compute_uv=False).ravel())[::-1]
    expected = torch.from_numpy(values.copy())
    # Golub-Kahan finds both copies of the pairs of conjugate frequencies.
    assert agrees(leading(result), expected[:6].expand(2, 6))
    if exact == 200:
        assert agrees(norms(result), expected.square().sum().sqrt().expand(2))


class UniformAttention(nn.Module):
    """Attention whose queries are zero: every position attends to all alike."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, width, bias=False).double()
        self.key = nn.Linear(width, width, bias=False).double()

    def forward(self, x: Tensor) -> Tensor:
        keys, values = self.key(x)[:, None], self.value(x)[:, None]
        return F.scaled_dot_product_attention(torch.zeros_like(keys), keys, values)[:, 0]


def test_uniform_attention() -> None:
    """J = (1/T) 11ᵀ ⊗ W_v: singular values of W_v and zeros; fused attention is replaced with a note."""
    model = UniformAttention(6)
    context = context_for(model, torch.randn(2, 12, 6, dtype=torch.float64))
    answer = analyse("jacobian", context, top=6, exact=8)
    result = answer.result
    values = torch.linalg.svdvals(model.value.weight.detach())
    assert agrees(leading(result), values.expand(2, 6))
    assert agrees(norms(result), values.square().sum().sqrt().expand(2))
    assert any("attention" in note for note in answer.notes)


def sample_context(name: str, folder: Path, **flags: Any) -> Subject:
    spec, _ = resolve_target(
        str(folder / f"{name}.toml"), {"dtype": "float64", **flags}, ("jacobian",)
    )
    return Subject(spec)


@pytest.mark.parametrize(
    "name",
    [
        "digits_mlp", "digits_cnn", "digits_lstm", "long_lstm", "saddle", "vanishing_sigmoid", "exploding",
        "dead_relu", "linear_regression",
    ],
)  # fmt: skip
def test_sample_models(name: str, samples: Path) -> None:
    """Every sample model against jacrev in float64, the first samples of its data."""
    # `exploding` turns one rounding of its input into 4e-11 of its Jacobian, and kernels round differently for
    # three samples than for the reference's one: there both run one by one.
    size = 1 if name == "exploding" else 3
    context = sample_context(name, samples, **{"batch-size": size, "max-batches": 3 // size})
    result = analyse("jacobian", context, time=False).result
    model = context.target.model
    dense = torch.cat([reference(model, b.data[0][0]) for b in context.target.batches])
    values = torch.linalg.svdvals(dense)
    scale = float(values.max())
    assert agrees(norms(result), torch.linalg.matrix_norm(dense), scale)
    assert agrees(leading(result), values[:, : leading(result).shape[1]], scale)


def test_byte_transformer(samples: Path) -> None:
    """Tokens: with respect to the embeddings, found and said so; values and norms as from jacrev."""
    context = sample_context("bytes_gpt", samples)
    batch = context.target.model_batches[0]
    tokens = batch.data[0][0][:2, :4]
    context.target.__dict__["model_batches"] = [type(batch)(((tokens,), {}, None), 2)]
    answer = analyse("jacobian", context, top=3, tol=1e-6)
    result = answer.result
    model: Any = context.target.model

    def from_embeddings(e: Tensor) -> Tensor:
        x = e + model.positions(torch.arange(4))
        for block in model.blocks:
            x = block(x)
        out: Tensor = model.head(model.norm(x))
        return out

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        dense = reference(from_embeddings, model.embedding(tokens).detach())
    values = torch.linalg.svdvals(dense)
    assert result.wrt == "output of embedding"
    assert any("embedding" in note for note in answer.notes)
    assert result.method == "golub-kahan"
    assert bool(((leading(result) - values[:, :3]).abs() <= 1e-6 * values[:, :3]).all())
    found = [(s.frobenius, s.frobenius_standard_error) for s in result.samples]
    for (norm, error), true in zip(found, torch.linalg.matrix_norm(dense).tolist(), strict=True):
        assert norm is not None
        assert error is not None
        # Two norms at 5 standard errors each: wrong once in 10⁶ runs, and the seed is fixed.
        assert abs(norm - true) <= 5 * error


def test_inner_pair() -> None:
    """--wrt and --of: from the input of one module to the output of another."""
    model = random_network(1, [4, 7, 6, 3], "tanh").double()
    x = torch.randn(3, 4, dtype=torch.float64)
    result = run(model, x, wrt="2", of="3")
    inner = reference(model[2:4], model[:2](x).detach())
    assert (result.wrt, result.of) == ("input of 2", "output of 3")
    assert agrees(leading(result), torch.linalg.svdvals(inner)[:, :5])


def test_data_without_targets_or_loss(tmp_path: Path, samples: Path) -> None:
    """A file with inputs only and no loss is enough."""
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(5, 64)).astype("float32"))
    spec, _ = resolve_target(
        str(samples / "digits_mlp.safetensors"),
        {"model": f"{samples / 'models.py'}:DigitsMLP", "data": str(tmp_path / "x.npz")},
        ("jacobian",),
    )
    context = Subject(spec)
    result = analyse("jacobian", context).result
    assert len(result.samples) == 5
    info = context.info()
    assert info is not None
    assert info.samples == 5
    assert info.data_sha256
    # Ten rows; the last digits of the input moved, with a product on either side; two products of each of five samples
    # in float64, and here.
    assert context.cost_info(0.0).matvecs == 10 + 2 + 2 * 5 + 2


class Several(nn.Module):
    """Named inputs and a structured output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2).double(), nn.Linear(4, 2).double()

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Any]:
        return {"logits": self.a(left) * self.b(right), "parts": (self.a(left), self.b(right))}


def test_several_inputs_and_outputs() -> None:
    """All floating-point inputs side by side, or one by name; --output-key follows names and indices."""
    model = Several()
    raw = {"left": torch.randn(2, 3).double(), "right": torch.randn(2, 4).double()}
    both = run(model, raw)
    assert (both.outputs, both.inputs) == (2, 7)
    one = run(model, raw, wrt="right", output_key="parts.1")
    values = torch.linalg.svdvals(model.b.weight.detach())
    assert agrees(leading(one), values.expand(2, 2))


@pytest.mark.parametrize("exact", [64, 4])
def test_batch_statistics(exact: int) -> None:
    """BatchNorm in train mode couples samples: said, and the whole batch's matrix is computed."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    context = context_for(model, x, train_mode=True)
    answer = analyse("jacobian", context, exact=exact, tol=1e-9)
    result = answer.result
    model.train()
    dense = torch.autograd.functional.jacobian(model, x).reshape(12, 18)
    assert result.coupled
    assert (result.outputs, result.inputs, len(result.samples)) == (12, 18, 1)
    assert any("depend on each other" in note for note in answer.notes)
    assert agrees(leading(result), torch.linalg.svdvals(dense)[None, :5])
    # One: the reference's own call.
    assert model.state_dict()["1.num_batches_tracked"].tolist() == 1
    with pytest.raises(UsageError, match="depend on each other"):
        analyse("jacobian", context_for(model, x, train_mode=True), sample=[1])


class Shifted(nn.Module):
    """Each sample also sees the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x + x.roll(1, 0))
        return out


def test_coupling_of_neighbours_is_found() -> None:
    """Coupling is found by differentiation, not by the names of modules."""
    assert run(Shifted(), torch.randn(7, 3).double()).coupled
    assert not run(nn.Linear(3, 2).double(), torch.randn(7, 3).double()).coupled


def test_json_is_strict_and_fits_its_schema(samples: Path) -> None:
    """The answer with every part filled is valid against the generated schema."""
    import jsonschema

    from curvcli.report.data import Envelope, json_schema

    context = sample_context("digits_lstm", samples, **{"batch-size": 2, "max-batches": 1})
    answer = analyse("jacobian", context, per_layer=True, full=True)
    result = answer.result
    envelope = Envelope(
        command="jacobian", version="0", target=context.info(), result=result,
        findings=answer.findings, notes=answer.notes, cost=context.cost_info(0.0),
    )  # fmt: skip
    parsed = json.loads(render(envelope), parse_constant=lambda c: pytest.fail(f"not JSON: {c}"))
    jsonschema.validate(parsed, json_schema(QUESTION.result))
    assert {"frobenius", "spectral", "condition", "samples", "layers", "time"} <= parsed[
        "result"
    ].keys()
    assert QUESTION.view(result)
