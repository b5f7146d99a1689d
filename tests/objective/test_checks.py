"""An objective that could not be answered for is refused with a sentence: shapes, NaN, chance, no gradient."""

import pytest
import torch
from torch import Tensor, nn

from curvcli.errors import DataError, LossError, ModelError, NonFiniteError
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective as objective_of
from tests.conftest import MakeObjective
from tests.oracles.samples import X, Y


def test_a_model_failing_inside_names_the_shapes(make_objective: MakeObjective) -> None:
    with pytest.raises(ModelError, match=r"failed on inputs \(float32\[6, 4\]\): RuntimeError"):
        make_objective(nn.Linear(5, 3), X, Y)


def test_nan_in_weights_data_and_loss(make_objective: MakeObjective) -> None:
    net = nn.Linear(4, 3)
    with torch.no_grad():
        net.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="weights contain NaN or Inf: 1 values in 'weight'"):
        make_objective(net, X, Y)
    with pytest.raises(NonFiniteError, match="in the data, the input of sample 0 is -inf"):
        make_objective(nn.Linear(4, 3), X * float("inf"), Y)

    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.log = nn.Linear(4, 3), Logarithm()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.log(-self.first(x).abs())
            return out

    class Logarithm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.log()

    with pytest.raises(NonFiniteError, match="first in the output of 'log'"):
        make_objective(Log(), X, Y)


def test_inf_in_data_that_the_loss_does_not_feel_is_named(make_objective: MakeObjective) -> None:
    """Sigmoid of Inf is 1: loss and gradients are finite, and the entry is named with its sample all the same."""
    x = X.clone()
    x[2, 1] = float("inf")
    net = nn.Sequential(nn.Sigmoid(), nn.Linear(4, 3))
    notes = make_objective(net, x, Y).notes
    assert any("the input of sample 2 is inf, entry [1]: the loss is finite" in n for n in notes)
    assert not make_objective(net, X, Y).notes


def test_a_random_model_is_named(make_objective: MakeObjective) -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    with pytest.raises(LossError, match="random modules: '1'"):
        make_objective(nn.Sequential(nn.Linear(4, 4), Noise(), nn.Linear(4, 3)), X, Y)
    # Dropout is off in eval mode, and in train mode too, with a note.
    objective = make_objective(
        nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), X, Y, train_mode=True
    )
    assert any("dropout stays off" in n for n in objective.notes)


def test_dropout_inside_attention_and_recurrent_layers_stays_off(
    make_objective: MakeObjective,
) -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)
            self.lstm = nn.LSTM(4, 3, num_layers=2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.lstm(self.encoder(x[:, None]))[0][:, 0]
            return out

    trained = make_objective(Layers(), X, Y, train_mode=True)
    assert trained.loss == pytest.approx(make_objective(Layers(), X, Y).loss, rel=1e-6)


def test_losses_without_gradient_or_terms(make_objective: MakeObjective) -> None:
    with pytest.raises(LossError, match="does not depend on the parameters"):
        objective_of(nn.Linear(4, 3), [Batch(X, 6)], lambda m, d: (m(d).detach().sum(), 6.0))
    with pytest.raises(DataError, match="every target is ignored"):
        make_objective(nn.Linear(4, 3), X, torch.full((6,), -100))
    with pytest.raises(DataError, match="no batches"):
        objective_of(nn.Linear(4, 3), [], lambda m, d: (m(d).sum(), 6.0))


def test_parameters_by_glob_and_integer_parameters(make_objective: MakeObjective) -> None:
    with pytest.raises(
        ModelError, match=r"no trainable parameter matches 'wieght'\. Did you mean 'weight'"
    ):
        make_objective(nn.Linear(4, 3), X, Y, select=["wieght"])
    frozen = nn.Linear(4, 3).requires_grad_(False)
    with pytest.raises(ModelError, match="no trainable parameter"):
        make_objective(frozen, X, Y)
    mixed = nn.Linear(4, 3)
    mixed.extra = nn.Parameter(torch.arange(3), requires_grad=False)
    assert make_objective(mixed, X, Y).n == 15
