"""Networks and losses of every kind are measured as they are: the same Hessian as double backward of the plain loss."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from curvcli import Batch, Objective, Subject, analyse, make_objective
from curvcli.errors import LossError
from curvcli.loading.loss import as_terms, loss_terms
from curvcli.operators.curvature.hessian import Hessian

Loss = Callable[[nn.Module, Any], Tensor]


def largest(model: nn.Module, loss: Loss, data: Any) -> float:
    """λ_max of the dense Hessian, by double backward of the plain loss in float64."""
    model = copy.deepcopy(model).double()
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss(model, data), parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    rows = [
        torch.cat(
            [
                g.reshape(-1)
                for g in torch.autograd.grad(
                    entry, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            ]
        )
        for entry in flat
    ]
    return float(torch.linalg.eigvalsh(torch.stack(rows))[-1])


def found(objective: Objective) -> float:
    answer = analyse("hessian", Subject(objective=objective), top=1, bottom=0, tol=1e-6)
    return answer.result.top[0].value


class Checkpointed(nn.Module):
    """The block's activations are computed again on the way back."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.how = how
        self.first, self.block = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        if self.how == "plain":
            return self.last(self.block(h))
        return self.last(checkpoint(self.block, h, use_reentrant=self.how == "reentrant"))


@pytest.mark.parametrize("how", ["reentrant", "other"])
def test_checkpointed_activations(how: str) -> None:
    torch.manual_seed(0)
    data = torch.randn(12, 4, dtype=torch.float64), torch.randint(0, 3, (12,))

    def loss(model: nn.Module, d: Any) -> Tensor:
        return F.cross_entropy(model(d[0]), d[1])

    objective = make_objective(
        Checkpointed(how).double(), [Batch(data, 12)],
        lambda m, d: (F.cross_entropy(m(d[0]), d[1], reduction="sum"), float(len(d[1]))),
    )  # fmt: skip
    assert found(objective) == pytest.approx(largest(Checkpointed("plain"), loss, data), rel=1e-6)


def test_a_padded_encoder_is_run_as_it_is_trained() -> None:
    """The fast path of inference drops padded places: another mean, another loss."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.embed = nn.Embedding(20, 8, padding_idx=0)
            layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, dropout=0.0)
            self.encoder, self.out = nn.TransformerEncoder(layer, 1), nn.Linear(8, 3)

        def forward(self, ids: Tensor) -> Any:
            hidden = self.encoder(self.embed(ids), src_key_padding_mask=ids == 0)
            return self.out(hidden.mean(1))

    torch.manual_seed(2)
    ids = torch.randint(1, 20, (5, 7))
    for row, length in enumerate((5, 4, 3, 2, 4)):
        ids[row, length:] = 0
    labels = torch.randint(0, 3, (5,))
    model = Pooled().double()
    objective = make_objective(
        model, [Batch((ids, labels), 5)],
        lambda m, d: (F.cross_entropy(m(d[0]), d[1], reduction="sum"), float(len(d[1]))),
    )  # fmt: skip
    trained = copy.deepcopy(model).train()
    assert objective.loss == pytest.approx(F.cross_entropy(trained(ids), labels).item(), rel=1e-9)


def test_sparse_gradients_of_embeddings() -> None:
    torch.manual_seed(0)
    ids, labels = torch.randint(0, 9, (12, 3)), torch.rand(12, dtype=torch.float64)

    def model(sparse: bool) -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Embedding(9, 2, sparse=sparse), nn.Tanh(), nn.Flatten(), nn.Linear(6, 1)
        ).double()

    def terms(m: nn.Module, d: Any) -> tuple[Tensor, float]:
        return (m(d[0])[:, 0] - d[1]).square().sum(), float(len(d[1]))

    objective = make_objective(model(True), [Batch((ids, labels), 12)], terms)
    truth = largest(model(False), lambda m, d: terms(m, d)[0] / 12, (ids, labels))
    assert found(objective) == pytest.approx(truth, rel=1e-6)
    assert any("sparse" in note for note in objective.notes)


def residual(model: nn.Module, x: Tensor) -> Tensor:
    """An equation's residual: the loss differentiates the network by its input."""
    x = x.detach().requires_grad_()
    u = model(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    total: Tensor = (slope[:, 0] + u[:, 0] * slope[:, 1]).square().mean() + u.square().mean()
    return total


@pytest.mark.parametrize("activation", [nn.Tanh, nn.SiLU, nn.GELU])
def test_losses_that_differentiate_the_network(activation: type[nn.Module]) -> None:
    """Written-out derivatives of layers step aside: they cannot be differentiated a third time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), activation(), nn.Linear(6, 1)).double()
    x = torch.rand(10, 2, dtype=torch.float64)

    def terms(m: nn.Module, d: Any) -> tuple[Tensor, float]:
        with torch.enable_grad():
            return residual(m, d), 1.0

    objective = make_objective(model, [Batch(x, 1, splittable=False)], terms)
    assert found(objective) == pytest.approx(largest(model, residual, x), rel=1e-5)


def differences(model: nn.Module, loss: Loss, data: Any) -> Tensor:
    """The dense Hessian by central differences of the gradient, where torch's second derivative is wrong."""
    model = copy.deepcopy(model).double()
    parameters = list(model.parameters())
    theta = torch.cat([p.detach().reshape(-1) for p in parameters])

    def gradient(at: Tensor) -> Tensor:
        torch.nn.utils.vector_to_parameters(at, parameters)
        return torch.cat(
            [g.reshape(-1) for g in torch.autograd.grad(loss(model, data), parameters)]
        )

    h = 1e-5
    columns = []
    for i in range(len(theta)):
        step = torch.zeros_like(theta)
        step[i] = h
        columns.append((gradient(theta + step) - gradient(theta - step)) / (2 * h))
    return torch.stack(columns, 1)


def test_derivatives_that_torch_has_wrong_are_replaced() -> None:
    """A third derivative through LayerNorm: products are differences, and the note says why."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(2, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 1)).double()
    x = torch.rand(8, 2, dtype=torch.float64)

    def terms(m: nn.Module, d: Any) -> tuple[Tensor, float]:
        with torch.enable_grad():
            return residual(m, d), 1.0

    objective = make_objective(model, [Batch(x, 1, splittable=False)], terms)
    truth_NN = differences(model, residual, x)
    operator = Hessian(objective)
    v_N = torch.randn(operator.n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # Central differences over 1e-5: truncation and rounding of 1e-6 each.
    torch.testing.assert_close(operator.matvec(v_N), truth_NN @ v_N, rtol=1e-4, atol=1e-5)
    assert operator.finite_differences
    assert any("not symmetric" in note for note in objective.notes)


def test_fused_weight_norm_is_right_or_replaced() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(
        weight_norm(nn.Linear(3, 4)), nn.Tanh(), weight_norm(nn.Linear(4, 1))
    ).double()
    data = torch.randn(9, 3, dtype=torch.float64), torch.randn(9, 1, dtype=torch.float64)

    def loss(m: nn.Module, d: Any) -> Tensor:
        return F.mse_loss(m(d[0]), d[1])

    objective = make_objective(
        model, [Batch(data, 9)],
        lambda m, d: (F.mse_loss(m(d[0]), d[1], reduction="sum"), float(d[1].numel())),
    )  # fmt: skip
    operator = Hessian(objective)
    v_N = torch.randn(operator.n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    truth_NN = differences(model, loss, data)
    torch.testing.assert_close(operator.matvec(v_N), truth_NN @ v_N, rtol=1e-4, atol=1e-5)


WEIGHTS = torch.tensor([1.0, 12.0, 4.0])


def balanced(outputs: Tensor, targets: Tensor) -> Tensor:
    """A mean whose weights depend on the batch."""
    return F.cross_entropy(outputs, targets, weight=WEIGHTS.to(outputs.dtype))


def classes() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    return (
        nn.Linear(5, 3).double(),
        torch.randn(40, 5, dtype=torch.float64),
        torch.randint(3, (40,)),
    )


def test_a_batch_is_cut_only_where_its_loss_is_the_sum_over_pieces(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curvcli.loading import loss as module

    monkeypatch.setattr(module, "resolve", lambda *_: balanced)
    terms = loss_terms("losses.py:balanced", {})
    model, x, y = classes()
    objective = make_objective(model, [Batch(((x,), {}, y), 40)], terms)
    assert not objective.splittable
    assert any("not cut" in note for note in objective.notes)
    assert objective.loss == pytest.approx(balanced(model(x), y).item(), rel=1e-12)
    halves = [Batch(((x[i : i + 20],), {}, y[i : i + 20]), 20) for i in (0, 20)]
    together = make_objective(model, halves, terms)
    assert together.loss == pytest.approx(balanced(model(x), y).item(), rel=1e-12)
    assert any("2 batches are taken as one" in note for note in together.notes)


def test_batches_that_do_not_fit_together_are_refused_where_the_loss_needs_it() -> None:
    def of_all(model: nn.Module, data: Any) -> tuple[Tensor, float]:
        outputs = model(data[0].flatten(1)[:, :5])
        return outputs.max() * len(outputs), float(len(outputs))

    model, x, _ = classes()
    batches = [Batch((x[:20],), 20), Batch((x[20:].repeat(1, 2),), 20)]
    with pytest.raises(LossError, match="do not fit together"):
        make_objective(model, batches, of_all)


def test_a_loss_module_follows_the_dtype_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from curvcli.loading import loss as module

    monkeypatch.setattr(module, "resolve", lambda *_: nn.CrossEntropyLoss(weight=WEIGHTS))
    model, x, y = classes()
    objective = make_objective(
        model, [Batch(((x,), {}, y), 40)], loss_terms("losses.py:criterion", {})
    )
    assert objective.loss == pytest.approx(balanced(model(x), y).item(), rel=1e-12)


@pytest.mark.parametrize(
    ("second", "count"),
    [
        (7, 7.0), (torch.tensor(7), 7.0), (torch.tensor(7.0), 7.0),
        ({"logits": 1}, 3.0), (torch.tensor(0.4), 3.0), (torch.tensor([1.0, 2.0]), 3.0), (True, 3.0),
    ],
)  # fmt: skip
def test_a_pair_is_a_sum_and_a_count_only_if_the_count_is_one(second: Any, count: float) -> None:
    total, found_count = as_terms((torch.tensor(2.0), second), 3, "loss")
    assert found_count == count
    assert float(total) == (2.0 if count == 7.0 else 6.0)
