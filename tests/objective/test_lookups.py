"""Embedding rows that no sample looks up are left out of all vectors, where nothing else uses them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import curvcli
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective as objective_of
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.hessian import Hessian

VOCABULARY, WIDTH = 40, 3
TOKENS = torch.tensor([[1, 5, 5, 7], [2, 5, 1, 30], [7, 7, 2, 1]])
CLASSES = torch.tensor([0, 2, 1])


class Reader(nn.Module):
    """Mean of the embeddings, and a layer on top; the other uses of the embedding are optional."""

    def __init__(self, other: str = "none") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.Linear(WIDTH, 3)
        self.other = other
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(self.embedding(tokens).mean(1))
        logits: Tensor = self.layer(hidden)
        if self.other == "tied":
            logits = logits + (hidden @ self.embedding.weight.T)[:, :3]
        if self.other == "penalty":
            logits = logits + 0.1 * self.embedding.weight.square().sum()
        return logits


def objective(model: nn.Module, batches: int = 1, **settings: Any) -> Objective:
    def terms(model: nn.Module, data: Any) -> tuple[Tensor, float]:
        x, y = data
        return F.cross_entropy(model(x), y, reduction="sum"), float(len(y))

    whole = Batch((TOKENS, CLASSES), 3)
    parts = [whole] if batches == 1 else [whole.take([i]) for i in range(3)]
    return objective_of(model.double(), parts, terms, **settings)


def dense(model: nn.Module) -> Tensor:
    """The whole Hessian, (n, n), by torch.func."""
    names = [n for n, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(theta: Tensor) -> Tensor:
        parts = [t.view(s) for t, s in zip(theta.split(sizes), shapes, strict=True)]
        out = torch.func.functional_call(model, dict(zip(names, parts, strict=True)), TOKENS)
        return F.cross_entropy(out, CLASSES)

    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    hessian: Tensor = torch.func.hessian(loss)(theta)
    return hessian


@pytest.mark.parametrize("batches", [1, 3])
def test_untouched_rows_are_left_out_without_changing_the_spectrum(batches: int) -> None:
    model = Reader().double()
    truth = torch.linalg.eigvalsh(dense(model))
    subject = objective(model, batches)
    touched = len({1, 5, 7, 2, 30})
    assert subject.untouched == (VOCABULARY - touched) * WIDTH
    assert subject.n == touched * WIDTH + 3 * WIDTH + 3
    assert subject.dimension == len(truth)
    result = curvcli.analyse(
        "hessian", curvcli.Subject(objective=subject), top=4, bottom=3, tol=1e-8
    ).result
    assert (result.parameters, result.untouched) == (len(truth), subject.untouched)
    # Residuals hold by theorem; the rest is rounding of float64.
    for pair, value in zip(result.top, truth.flip(0), strict=False):
        assert abs(pair.value - value) <= pair.residual + 1e-12
    for pair, value in zip(result.bottom, truth, strict=False):
        assert abs(pair.value - value) <= pair.residual + 1e-12
    assert result.reach.lower <= truth[0] + 1e-12
    assert result.reach.upper >= truth[-1] - 1e-12


def test_exact_zeros_take_their_places_and_fill_up_what_was_asked_for() -> None:
    """More eigenvalues than touched entries are asked for, at both ends, against the dense block."""
    model = Reader().double()
    block = VOCABULARY * WIDTH
    truth = torch.linalg.eigvalsh(dense(model)[:block, :block])
    subject = objective(model, select=["embedding.weight"])
    assert subject.n == 5 * WIDTH
    result = curvcli.analyse(
        "hessian", curvcli.Subject(objective=subject), top=20, bottom=18, tol=1e-8
    ).result
    assert (len(result.top), len(result.bottom)) == (20, 18)
    for pairs, values in ((result.top, truth.flip(0)), (result.bottom, truth)):
        for pair, value in zip(pairs, values, strict=False):
            assert abs(pair.value - value) <= pair.residual + 1e-12  # rounding of float64
    assert any(p.value == p.residual == 0.0 for p in result.top)


def test_the_reach_speaks_of_the_whole_hessian() -> None:
    model = Reader().double()
    truth = torch.linalg.eigvalsh(dense(model))
    result = curvcli.analyse("saddle", curvcli.Subject(objective=objective(model))).result
    assert result.reach.lower <= min(0.0, float(truth[0]) + 1e-12)  # rounding of float64
    assert result.reach.upper >= float(truth[-1]) - 1e-12


@pytest.mark.parametrize("other", ["tied", "penalty"])
def test_an_embedding_with_another_use_is_kept_whole(other: str) -> None:
    subject = objective(Reader(other))
    assert subject.untouched == 0
    assert subject.n == subject.dimension == VOCABULARY * WIDTH + 3 * WIDTH + 3


def test_weight_decay_bends_untouched_rows() -> None:
    assert objective(Reader(), weight_decay=0.1).untouched == 0


def test_vectors_go_there_and_back() -> None:
    subject = objective(Reader())
    v_N = torch.randn(subject.n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    views = subject.views(v_N)
    assert [v.shape for v in views] == [p.shape for p in subject.parameters]
    assert torch.equal(subject.flatten(views), v_N)
    rows = views[0].abs().sum(1).nonzero()[:, 0].tolist()
    assert rows == [1, 2, 5, 7, 30]


@pytest.mark.parametrize("analysis", ["taylor", "step", "backprop", "gradients"])
def test_other_analyses_work_in_the_same_space(analysis: str) -> None:
    context = curvcli.Subject(objective=objective(Reader()))
    result = curvcli.analyse(analysis, context).result
    assert getattr(result, "parameters", context.objective.dimension) == context.objective.dimension


class Looker(nn.Module):
    """Two embeddings looked up in every way that torch has, one of them twice."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.words = nn.Embedding(VOCABULARY, WIDTH, padding_idx=padding)
        self.counted = nn.Embedding(VOCABULARY, WIDTH, scale_grad_by_freq=True)
        self.layer = nn.Linear(WIDTH, 3)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        found = self.words(tokens) * self.counted(tokens) + self.words(tokens.flip(1)).sin()
        found = found + torch.embedding(self.words.weight, tokens + 1)
        logits: Tensor = self.layer(torch.tanh(found.mean(1)))
        return logits


def test_rows_without_a_place_are_constants() -> None:
    """On other data, of the rows looked up only those that vectors have are differentiated."""
    subject = objective(Reader())
    other = subject.twin(subject.model, [Batch((TOKENS + 1, CLASSES), 3)])
    v_N = torch.randn(subject.n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss = F.cross_entropy(other.model(TOKENS + 1), CLASSES)
    gradients = torch.autograd.grad(loss, subject.parameters, create_graph=True)
    whole = torch.autograd.grad(gradients, subject.parameters, subject.views(v_N))
    product_N = Hessian(subject).twin(other).matvec(v_N)
    assert torch.allclose(product_N, subject.flatten(whole), atol=1e-13)
