"""`lr` finds the largest rate that trains, beside the bound from the curvature."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from curvcli import analyse, load
from curvcli.analyses.lr.result import LrResult
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import UsageError
from curvcli.loading.checkpoints.training import read_training
from tests.conftest import MakeObjective
from tests.oracles.networks import fresh_mlp


def regression() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=generator).double()
    return x, torch.randn(40, 1, generator=generator).double()


def lr_of(objective: object, **options: object) -> LrResult:
    result = analyse("lr", Subject(objective=objective), **options).result  # type: ignore[arg-type]
    assert isinstance(result, LrResult)
    return result


@pytest.mark.parametrize(
    ("kind", "limit"), [("sgd", 2.0), ("momentum", 2 * 1.9)], ids=["sgd", "momentum"]
)
def test_on_a_quadratic_the_answer_is_the_bound(
    make_objective: MakeObjective, kind: str, limit: float
) -> None:
    """2/λ and 2(1 + β)/λ, λ from the normal matrix: the answer is within one halving, 4.5 %, below it."""
    x, y = regression()
    largest = float(torch.linalg.eigvalsh(2 / 40 * x.T @ x)[-1])
    result = lr_of(
        make_objective(nn.Linear(4, 1, bias=False).double(), x, y, "mse"), optimizer=kind
    )
    assert result.bound.rate == pytest.approx(limit / largest, rel=1e-2)
    assert result.highest is not None
    assert 0.955 * limit / largest < result.highest <= limit / largest * (1 + 1e-9)


def test_at_the_minimum_the_answer_is_the_bound_too(make_objective: MakeObjective) -> None:
    """No step moves there, so that only the curvature can tell."""
    x, y = regression()
    model = nn.Linear(4, 1, bias=False).double()
    model.weight.data = torch.linalg.lstsq(x, y).solution.T.contiguous()
    largest = float(torch.linalg.eigvalsh(2 / 40 * x.T @ x)[-1])
    result = lr_of(make_objective(model, x, y, "mse"))
    assert result.highest is not None
    assert 0.955 * 2 / largest < result.highest <= 2 / largest * (1 + 1e-9)


def test_the_weights_come_back_to_the_bit(make_objective: MakeObjective) -> None:
    """Values, storages and gradients, with every kind of optimizer."""
    model = fresh_mlp()
    x, y = torch.randn(32, 64), torch.randint(0, 10, (32,))
    before = [(p.data_ptr(), p.detach().clone()) for p in model.parameters()]
    for kind in ("sgd", "momentum", "adam", "adamw"):
        lr_of(make_objective(model, x, y), optimizer=kind, steps=4, refine=1, confirm=1)
    for (place, values), p in zip(before, model.parameters(), strict=True):
        assert p.data_ptr() == place
        assert torch.equal(p, values)
        assert p.grad is None


def test_units_that_die_end_the_range(make_objective: MakeObjective) -> None:
    """Far inputs make steps throw ReLU units beyond all data, long before the loss diverges at 2/λ."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
    )
    x, y = 4 + torch.rand(64, 8), torch.randint(0, 4, (64,))
    result = lr_of(make_objective(model, x, y), optimizer="adam")
    assert result.ends_by in ("dies", "diverges")
    failing = [t for t in result.trials if t.verdict == "dies"]
    assert failing
    assert all((t.dead_fraction or 0) > result.dead_fraction + 0.1 for t in failing)


def _checkpoint(path: Path, optimizer_class: type, **settings: object) -> nn.Module:
    """Five steps of training, saved with the optimizer's state."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 4), torch.randint(0, 3, (40,))
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = optimizer_class(model.parameters(), **settings)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "global_step": 5}, path
    )
    torch.save({"x": x, "y": y}, path.with_name("data.pt"))
    return model


@pytest.mark.parametrize(
    ("kind", "optimizer_class", "settings"),
    [
        ("momentum", torch.optim.SGD, {"lr": 0.1, "momentum": 0.8}),
        ("adam", torch.optim.Adam, {"lr": 0.01}),
        ("adamw", torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    ],
)
def test_runs_go_on_from_the_optimizers_state(
    tmp_path: Path, kind: str, optimizer_class: type, settings: dict[str, object]
) -> None:
    """The loss after each run is the one that torch's own optimizer, loaded with the same state, comes to."""
    model = _checkpoint(tmp_path / "last.pt", optimizer_class, **settings)
    subject = load(
        str(tmp_path / "last.pt"), model="auto", model_args={"activation": "tanh"},
        data=str(tmp_path / "data.pt"), loss="cross_entropy",
    )  # fmt: skip
    result = analyse("lr", subject, steps=6, refine=0, confirm=0).result
    assert (result.optimizer, result.state) == (kind, "checkpoint")
    assert result.checkpoint_rate == settings["lr"]
    data = torch.load(tmp_path / "data.pt")
    start = [p.detach().clone() for p in model.parameters()]
    for trial in result.trials[:2]:
        with torch.no_grad():
            for p, value in zip(model.parameters(), start, strict=True):
                p.copy_(value)
        optimizer = optimizer_class(model.parameters(), **settings)
        optimizer.load_state_dict(torch.load(tmp_path / "last.pt")["optimizer"])
        optimizer.param_groups[0]["lr"] = trial.rate
        for _ in range(6):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data["x"]), data["y"]).backward()
            optimizer.step()
        loss = float(nn.functional.cross_entropy(model(data["x"]), data["y"]).detach())
        assert trial.loss == pytest.approx(loss, rel=1e-5)


def test_the_checkpoints_own_rate_is_tried_and_frozen_parameters_stay(tmp_path: Path) -> None:
    """The first layer was not given to the optimizer: the runs are torch's own over the second, at the saved rate too.

    The bound is that of the second layer's block of the dense Hessian.
    """
    torch.manual_seed(0)
    x, y = torch.randn(24, 5), torch.arange(24) % 3
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.3, momentum=0.8)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "last.pt"
    )
    torch.save({"x": x, "y": y}, tmp_path / "data.pt")
    subject = load(
        str(tmp_path / "last.pt"), model="auto", model_args={"activation": "tanh"},
        data=str(tmp_path / "data.pt"), loss="cross_entropy",
    )  # fmt: skip
    answer = analyse("lr", subject, steps=6, refine=0, confirm=0)
    trial = next(t for t in answer.result.trials if t.rate == 0.3)
    assert answer.headline is not None
    assert "The checkpoint's own, 0.300, works" in answer.headline.sentence
    features = torch.tanh(model[0](x)).detach().double()
    weights = [p.detach().double() for p in model[2].parameters()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        out = features @ flat[:12].view(3, 4).T + flat[12:]
        return nn.functional.cross_entropy(out, y)

    flat = torch.cat([w.flatten() for w in weights])
    block = torch.autograd.functional.hessian(loss, flat)
    largest = float(torch.linalg.eigvalsh(block)[-1])
    assert answer.result.bound.lambda_max == pytest.approx(largest, rel=2e-2)
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    final = float(nn.functional.cross_entropy(model(x), y).detach())
    assert trial.loss == pytest.approx(final, rel=1e-5)


def test_a_training_checkpoint_tells_step_and_optimizer(tmp_path: Path) -> None:
    """Kind, rate, betas and the step, as torch saved them; a file of weights alone tells nothing."""
    _checkpoint(tmp_path / "last.pt", torch.optim.AdamW, lr=0.01, betas=(0.8, 0.99))
    found = read_training(tmp_path / "last.pt")
    assert found is not None
    assert found.optimizer is not None
    assert (found.step, found.optimizer.kind) == (5, "adamw")
    assert (found.optimizer.learning_rate, found.optimizer.betas) == (0.01, (0.8, 0.99))
    assert found.optimizer.limit == pytest.approx(2 * 1.8 / 0.2)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    assert read_training(tmp_path / "weights.pt") is None


def test_a_file_without_a_state_is_refused(tmp_path: Path, make_objective: MakeObjective) -> None:
    """``--optimizer`` with a file of weights is an error that says what was expected."""
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UsageError, match="no state of an optimizer"):
        lr_of(
            make_objective(fresh_mlp(), torch.randn(8, 64), torch.randint(0, 10, (8,))),
            optimizer=str(tmp_path / "weights.pt"),
        )


def test_an_optimizer_that_does_not_exist(make_objective: MakeObjective) -> None:
    """Neither one of the four nor a file: the nearest is named."""
    with pytest.raises(UsageError, match=r"no optimizer and no file\. Did you mean 'adamw'"):
        lr_of(
            make_objective(fresh_mlp(), torch.randn(8, 64), torch.randint(0, 10, (8,))),
            optimizer="adamww",
        )


def test_a_run_that_ends_early_does_not_say_that_no_rate_works(
    make_objective: MakeObjective,
) -> None:
    """After the curvature alone nothing is known of the rates."""
    x, y = regression()
    ended = [False]

    def told(now: Stage) -> None:
        ended[0] = ended[0] or now.what == "rates"

    journal = Journal(progress=told, interrupted=lambda: ended[0])
    subject = Subject(objective=make_objective(nn.Linear(4, 1).double(), x, y, "mse"))
    answer = analyse("lr", subject, journal)
    assert ended[0]
    assert not answer.complete
    assert answer.result.trials == []
    assert answer.findings == []
    assert answer.headline is not None
    assert "No learning rate was tried for sgd" in answer.headline.sentence
