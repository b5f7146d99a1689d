"""Gauss-Newton, Fisher and preconditioned matrices are the dense ones that are made another way."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvcli.errors import CheckpointError, LossError, UsageError
from curvcli.linalg.statistics.student import quantile
from curvcli.loading.checkpoints.moments import read_preconditioner
from curvcli.loading.loss import loss_terms
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective as objective_of
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.fisher import EmpiricalFisher, Fisher
from curvcli.operators.curvature.gauss_newton import GaussNewton
from curvcli.operators.curvature.gram import gram_spectrum
from curvcli.operators.curvature.matrices import curvature
from curvcli.operators.curvature.preconditioned import PreconditionedHessian
from tests.conftest import MakeObjective
from tests.oracles.dense import dense_hessian, random_data, random_network
from tests.oracles.program import ROOT, answer, invoke

MLP = str(ROOT / "sample_models" / "digits_mlp.toml")
# Products in float64 against dense matrices in float64: some hundred additions of numbers of order one.
EXACT = 1e-12


def dense(operator: Curvature) -> Tensor:  # type: ignore[type-arg]
    return torch.stack([operator.matvec(e) for e in torch.eye(operator.n, dtype=torch.float64)])


class Tokens(nn.Module):
    """A tiny sequence model; logits with the classes last, or second."""

    def __init__(self, second: bool) -> None:
        super().__init__()
        self.embed, self.head, self.second = nn.Embedding(6, 4), nn.Linear(4, 3), second

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.embed(x)).cumsum(1))
        return out.movedim(-1, 1) if self.second else out


def token_objective(second: bool, weight_decay: float = 0.0) -> tuple[Objective, Tensor, Tensor]:
    torch.manual_seed(0)
    x, y = torch.randint(0, 6, (5, 4)), torch.randint(0, 3, (5, 4))
    y[0, 1:] = y[2, 0] = -100
    batches = [Batch(((x[:2],), {}, y[:2]), 2), Batch(((x[2:],), {}, y[2:]), 3)]
    model = Tokens(second).double()
    terms = loss_terms("cross_entropy", {})
    return objective_of(model, batches, terms, weight_decay=weight_decay), x, y


@pytest.mark.parametrize("second", [False, True])
def test_empirical_fisher_is_the_sum_over_terms_with_their_own_gradients(second: bool) -> None:
    """One backward pass for each token that counts; ignored targets and two unequal batches (T2)."""
    objective, x, y = token_objective(second, 0.01)
    expected = 0.01 * torch.eye(objective.n, dtype=torch.float64)
    for i, t in (y != -100).nonzero().tolist():
        out = objective.model(x[i : i + 1])
        row = (out.movedim(1, -1) if second else out)[0, t]
        loss = -torch.log_softmax(row, 0)[y[i, t]]
        g = torch.cat([p.reshape(-1) for p in torch.autograd.grad(loss, objective.parameters)])
        expected += torch.outer(g, g) / float((y != -100).sum())
    assert torch.allclose(dense(EmpiricalFisher(objective)), expected, atol=EXACT)


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits", "cross_entropy"])
def test_empirical_fisher_of_samples(loss: str, make_objective: MakeObjective) -> None:
    model = random_network(1, [3, 4, 2], "tanh").double()
    x, y = random_data(1, 7, 3, 2, loss)
    x, y = x.double(), y.double() if y.is_floating_point() else y
    objective = make_objective(model, x, y, loss, splits=[5, 2])
    expected = torch.zeros(objective.n, objective.n, dtype=torch.float64)
    for i in range(7):
        total, _ = loss_terms(loss, {})(model, ((x[i : i + 1],), {}, y[i : i + 1]))
        g = torch.cat([p.reshape(-1) for p in torch.autograd.grad(total, objective.parameters)])
        expected += torch.outer(g, g) / objective.weight
    assert torch.allclose(dense(EmpiricalFisher(objective)), expected, atol=EXACT)


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits", "cross_entropy"])
def test_fisher_is_gauss_newton_in_expectation(loss: str, make_objective: MakeObjective) -> None:
    """vᵀF̂v over 400 seeds: its mean is vᵀGv, its spread the standard error that a single run reports."""
    model = random_network(1, [3, 4, 2], "tanh").double()
    x, y = random_data(1, 12, 3, 2, loss)
    objective = make_objective(model, x.double(), y.double() if y.is_floating_point() else y, loss)
    torch.manual_seed(0)
    v = torch.randn(objective.n, dtype=torch.float64)
    truth = float(v @ GaussNewton(objective).matvec(v))
    reported = Fisher(objective, draws=2).quadratic(v[None])[0]
    assert reported.expected == pytest.approx(truth, rel=1e-10)
    values = torch.tensor(
        [float(v @ Fisher(objective, draws=2, seed=s).matvec(v)) for s in range(200)]
    )
    error = float(values.std())
    # The spread of a standard deviation of 200 skewed values is about 11 % (kurtosis up to 10).
    assert error == pytest.approx(reported.standard_error, rel=0.25)
    assert abs(float(values.mean()) - truth) < 4 * error / 200**0.5
    covered = [abs(float(x) - truth) <= quantile(0.95, 10**4) * error for x in values]
    assert 0.92 <= np.mean(covered) <= 0.98


def test_nll_draws_from_the_log_probabilities(make_objective: MakeObjective) -> None:
    """The same network with logits and cross-entropy: one model, one Fisher matrix in expectation."""
    model = random_network(3, [3, 4, 3], "tanh").double()
    x, y = random_data(3, 9, 3, 3, "cross_entropy")
    plain = make_objective(model, x.double(), y, "cross_entropy")
    logs = make_objective(nn.Sequential(model, nn.LogSoftmax(1)), x.double(), y, "nll")
    torch.manual_seed(0)
    v = torch.randn(plain.n, dtype=torch.float64)[None]
    expected = Fisher(plain).quadratic(v)[0].expected
    assert Fisher(logs).quadratic(v)[0].expected == pytest.approx(expected, rel=1e-10)
    many = float(v[0] @ Fisher(logs, draws=4000).matvec(v[0]))
    error = Fisher(logs, draws=4000).quadratic(v)[0].standard_error
    assert abs(many - expected) < 4 * error


@pytest.mark.parametrize("kind", [GaussNewton, EmpiricalFisher, Fisher])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_gram_spectrum_is_that_of_the_dense_matrix(
    kind: type[GaussNewton], weight_decay: float
) -> None:
    objective, _, _ = token_objective(True, weight_decay)
    operator = kind(objective)
    matrix = dense(operator)
    gram = gram_spectrum(operator, 500)
    assert gram is not None
    reference = torch.linalg.eigvalsh(matrix).flip(0).numpy()
    assert np.allclose(gram.all_values(), reference, atol=1e-13)
    vectors = gram.vectors(3)
    rest = matrix @ vectors.T - vectors.T * torch.from_numpy(gram.values_R[:3].copy())
    assert float(rest.norm()) < 1e-12
    assert torch.allclose(gram.diagonal(), matrix.diag(), atol=1e-13)
    assert gram_spectrum(operator, 3) is None


def test_a_loss_that_is_not_convex_in_the_outputs_has_no_gram_factor(
    make_objective: MakeObjective,
) -> None:
    model = random_network(0, [3, 2], "tanh").double()
    x, y = random_data(0, 6, 3, 2, "mse")
    objective = make_objective(model, x.double(), y.double(), f"{__name__}:concave")
    assert gram_spectrum(GaussNewton(objective), 500) is None


def concave(outputs: Tensor, targets: Tensor) -> Tensor:
    return -((outputs - targets) ** 2)


def test_products_are_checked_by_differences_of_the_outputs() -> None:
    objective, _, _ = token_objective(False, 0.01)
    torch.manual_seed(0)
    v = torch.randn(objective.n, dtype=torch.float64)
    for operator in (GaussNewton(objective), EmpiricalFisher(objective), Fisher(objective)):
        right, wrong = operator.check(v), operator.check(v, 2 * operator.matvec(v))
        assert right is not None
        assert wrong is not None
        # Central differences in float64: eps^(2/3).
        assert right < 1e-9
        assert wrong > 0.3


@pytest.mark.parametrize("strategy", ["keep", "rebuild", "finite-difference"])
def test_preconditioned_hessian_against_the_dense_one(
    strategy: str, make_objective: MakeObjective
) -> None:
    model = random_network(2, [3, 5, 2], "tanh").double()
    x, y = random_data(2, 11, 3, 2, "mse")
    objective = make_objective(
        model, x.double(), y.double(), "mse", splits=[7, 4], weight_decay=0.1
    )
    diagonal = torch.rand(objective.n, dtype=torch.float64) + 0.1
    operator = PreconditionedHessian(objective, diagonal_N=diagonal, strategy=strategy)
    h = dense_hessian(model, x, y, "mse", 0.1)
    expected = diagonal.rsqrt()[:, None] * h * diagonal.rsqrt()
    # Differences of the gradient in float64 are right to eps^(2/3), with scales up to 10.
    assert torch.allclose(dense(operator), expected, atol=1e-7 if "finite" in strategy else EXACT)
    parts = sum(p.products_KN for p in operator.parts(torch.eye(objective.n).double()))
    assert torch.allclose(
        parts + operator.decay_product(torch.eye(objective.n).double()),
        expected,
        atol=1e-7 if "finite" in strategy else EXACT,
    )
    v = torch.randn(objective.n, dtype=torch.float64)
    check = operator.check(v)
    assert check is not None
    assert check < 1e-6


# the optimizer's state


Trained = tuple[nn.Module, torch.optim.Optimizer, list[list[Tensor]]]


def trained(optimizer: type[torch.optim.Optimizer], named: bool = True, groups: int = 1) -> Trained:
    """A network after three steps, its optimizer, and the gradients of the steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    if groups == 2:
        decayed = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() < 2]
        made = optimizer([{"params": decayed}, {"params": others}], lr=0.01)  # type: ignore[call-arg]
    else:
        made = optimizer(model.named_parameters() if named else model.parameters(), lr=0.01)  # type: ignore[call-arg]
    history = []
    for _ in range(3):
        made.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        history.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        made.step()
    return model, made, history


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in model.named_parameters()}


@pytest.mark.parametrize("place", [None, "optimizer", "optimizer_states"])
@pytest.mark.parametrize("named", [True, False])
def test_second_moments_of_adam_are_those_of_its_gradients(
    place: str | None, named: bool, tmp_path: Path
) -> None:
    model, optimizer, history = trained(torch.optim.AdamW, named)
    state = optimizer.state_dict()
    content = (
        state if place is None else {"epoch": 3, place: [state] if "states" in place else state}
    )
    torch.save(content, tmp_path / "opt.pt")
    found = read_preconditioner(tmp_path / "opt.pt", shapes_of(model), [])
    assert (found.algorithm, found.steps, found.learning_rate) == ("Adam", 3, 0.01)
    # 2 (1 + 0.9) / (1 − 0.9) = 38 over the learning rate (Cohen et al. 2022)
    assert found.stability_threshold == pytest.approx(3800)
    for i, (name, _) in enumerate(model.named_parameters()):
        v = sum(0.001 * 0.999 ** (2 - k) * g[i].double() ** 2 for k, g in enumerate(history))
        expected = (v / (1 - 0.999**3)).sqrt() + 1e-8  # type: ignore[union-attr]
        # The optimizer keeps its moments in float32.
        assert torch.allclose(found.diagonal[name], expected, rtol=1e-5)


def test_groups_with_and_without_weight_decay_are_told_by_shape(tmp_path: Path) -> None:
    model, optimizer, _ = trained(torch.optim.Adam, groups=2)
    torch.save(optimizer.state_dict(), tmp_path / "opt.pt")
    found = read_preconditioner(tmp_path / "opt.pt", shapes_of(model), [])
    state = optimizer.state
    for name, p in model.named_parameters():
        v = state[p]["exp_avg_sq"].double() / (1 - 0.999**3)
        assert torch.allclose(found.diagonal[name], v.sqrt() + 1e-8)


def test_rmsprop_and_adagrad(tmp_path: Path) -> None:
    for optimizer, key, eps in (
        (torch.optim.RMSprop, "square_avg", 1e-8),
        (torch.optim.Adagrad, "sum", 1e-10),
    ):
        model, made, _ = trained(optimizer)
        torch.save(made.state_dict(), tmp_path / "opt.pt")
        found = read_preconditioner(tmp_path / "opt.pt", shapes_of(model), [])
        for name, p in model.named_parameters():
            assert torch.allclose(found.diagonal[name], made.state[p][key].double().sqrt() + eps)
        assert found.stability_threshold == pytest.approx(200)  # 2 / lr: no averaged gradient


def test_an_optimizer_of_another_model_is_refused(tmp_path: Path) -> None:
    model, optimizer, _ = trained(torch.optim.Adam, named=False)
    torch.save(optimizer.state_dict(), tmp_path / "opt.pt")
    with pytest.raises(CheckpointError, match="4 parameters, the model 2"):
        read_preconditioner(tmp_path / "opt.pt", shapes_of(nn.Linear(3, 4)), [])
    wider = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    with pytest.raises(CheckpointError, match="order that cannot be told"):
        read_preconditioner(tmp_path / "opt.pt", shapes_of(wider), [])
    torch.save(torch.optim.SGD(model.parameters(), lr=0.1).state_dict(), tmp_path / "sgd.pt")
    with pytest.raises(CheckpointError, match="no second moments"):
        read_preconditioner(tmp_path / "sgd.pt", shapes_of(model), [])
    torch.save({"weights": torch.ones(3)}, tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="no optimizer state"):
        read_preconditioner(tmp_path / "none.pt", shapes_of(model), [])


# the command


def test_every_matrix_by_its_name(tmp_path: Path) -> None:
    from curvcli.analyses.shared.subject import Subject
    from curvcli.loading.spec import make_spec, read_target_file

    spec = make_spec(read_target_file(Path(MLP), ("hessian",)).settings)
    objective = Subject(spec).objective
    optimizer = torch.optim.Adam(objective.model.named_parameters())
    objective.sum_of(objective.batches[0]).backward()
    optimizer.step()
    torch.save({"optimizer": optimizer.state_dict()}, tmp_path / "train.pt")
    values = {}
    for matrix in ("hessian", "ggn", "fisher", "empirical-fisher", "preconditioned"):
        extra = ["--optimizer", str(tmp_path / "train.pt")] if matrix == "preconditioned" else []
        code, envelope = answer("hessian", MLP, "--matrix", matrix, "--top", "2", "--bottom", "1", *extra)  # fmt: skip
        assert code == 0, envelope
        result = envelope["result"]
        assert result["matrix"] == matrix
        # A product in float32 by finite differences in float32.
        assert result["hvp_check"] < 1e-2
        values[matrix] = result["top"][0]["value"]
        assert (result["sampled"] is None) == (matrix != "fisher")
        assert (result["preconditioner"] is None) == (matrix != "preconditioned")
        if "fisher" in matrix:
            assert result["method"] == "gram"
    # Near a minimum the residual part is small.
    assert values["ggn"] == pytest.approx(values["hessian"], rel=0.01)


def test_gram_and_lanczos_agree() -> None:
    arguments = ("hessian", MLP, "--matrix", "empirical-fisher", "--top", "5", "--bottom", "0")
    _, gram = answer(*arguments)
    _, krylov = answer(*arguments, "--exact-rows", "0")
    assert krylov["result"]["method"] == "lanczos"
    for a, b in zip(gram["result"]["top"], krylov["result"]["top"], strict=True):
        assert abs(a["value"] - b["value"]) <= a["residual"] + b["residual"]


def test_wrong_matrices_get_a_sentence() -> None:
    for arguments, expected in (
        (["--matrix", "preconditioned"], "--optimizer"),
        (["--matrix", "ggn", "--optimizer", "x.pt"], "no meaning"),
        (["--matrix", "preconditioned", "--optimizer", "nowhere.pt"], "there is no optimizer checkpoint"),
    ):  # fmt: skip
        result = invoke("hessian", MLP, *arguments)
        assert result.exit_code == 2, arguments
        assert expected in result.stderr
    regression = str(ROOT / "sample_models" / "linear_regression.toml")
    result = invoke("hessian", regression, "--matrix", "fisher", "--loss", "huber")
    assert result.exit_code == 2
    assert "none is known for the loss 'huber'" in result.stderr
    objective, _, _ = token_objective(False)
    with pytest.raises(UsageError, match="no matrix"):
        curvature(objective, "kfac")


def test_an_objective_without_outputs_has_no_gauss_newton_matrix() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    batch = Batch(torch.randn(4, 3), 4)
    objective = objective_of(model, [batch], lambda m, d: (m(d).square().sum(), 4.0))
    with pytest.raises(LossError, match="outputs and the loss apart"):
        GaussNewton(objective)


def test_against_curvlinops(make_objective: MakeObjective) -> None:
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops-for-pytorch is not installed")
    model = random_network(5, [4, 6, 3], "tanh").double()
    x, y = random_data(5, 10, 4, 3, "cross_entropy")
    x = x.double()
    objective = make_objective(model, x, y, "cross_entropy")
    data = [(x, y)]
    for ours, theirs in (
        (GaussNewton(objective), curvlinops.GGNLinearOperator),
        (EmpiricalFisher(objective), curvlinops.EFLinearOperator),
    ):
        other = theirs(model, nn.CrossEntropyLoss(), list(model.parameters()), data)
        theirs_dense = torch.as_tensor(other @ torch.eye(objective.n, dtype=torch.float64))
        assert torch.allclose(dense(ours), theirs_dense, atol=EXACT)


def test_the_optimizers_state_in_the_checkpoint_is_found(tmp_path: Path) -> None:
    """The same spectrum as with --optimizer and the same state; another file still wins."""
    from curvcli.analyses.shared.subject import Subject
    from curvcli.loading.spec import make_spec, read_target_file

    spec = make_spec(read_target_file(Path(MLP), ("hessian",)).settings)
    objective = Subject(spec).objective
    states = []
    for scale in (1.0, 10.0):
        optimizer = torch.optim.Adam(objective.model.named_parameters())
        optimizer.zero_grad()
        (scale * objective.sum_of(objective.batches[0])).backward()
        optimizer.step()
        states.append(optimizer.state_dict())
    torch.save({"model": objective.model.state_dict(), "optimizer": states[0]}, tmp_path / "a.pt")
    torch.save({"optimizer": states[1]}, tmp_path / "b.pt")
    asked = (
        "hessian", str(tmp_path / "a.pt"), "--model", str(spec.model), "--data", str(spec.data), "--loss",
        "cross_entropy", "--matrix", "preconditioned", "--top", "1", "--bottom", "0",
    )  # fmt: skip
    _, own = answer(*asked)
    _, named = answer(*asked, "--optimizer", str(tmp_path / "a.pt"))
    _, other = answer(*asked, "--optimizer", str(tmp_path / "b.pt"))
    assert own["result"]["top"] == named["result"]["top"]
    assert any("state is that in the checkpoint, a.pt" in note for note in own["notes"])
    assert not any("in the checkpoint" in note for note in named["notes"])
    # Ten times the gradient is up to ten times D, less where ε counts: so much smaller is the eigenvalue.
    ratio = own["result"]["top"][0]["value"] / other["result"]["top"][0]["value"]
    assert 2 < ratio < 10.01
