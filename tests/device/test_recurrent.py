"""Recurrent layers and cells on a device whose fused kernels have no derivative in evaluation mode."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvcli.analyses.shared.subject import Subject
from curvcli.api import analyse
from curvcli.loading.checkpoints.torchscript import ScriptProgram
from curvcli.loading.loss import loss_terms
from curvcli.loading.spec import TargetSpec
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.hessian import Hessian

# Float64: sums in another order.
_RELATIVE = 1e-9


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, layer: Any, **options: Any) -> None:
        super().__init__()
        self.layer = layer(3, 4, batch_first=True, **options)
        self.head = nn.Linear(self.layer.hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x)[0][:, -1])
        return out


class Loop(nn.Module):
    """A cell called step by step."""

    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.cell = cell(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        out: Tensor = self.head(state[0] if isinstance(state, tuple) else state)
        return out


def objective_on(device: torch.device | str, model: nn.Module) -> Objective:
    torch.manual_seed(1)
    x = torch.randn(6, 5, 3, dtype=torch.float64).to(device)
    y = (torch.arange(6) % 2).to(device)
    model = model.to(device=device, dtype=torch.float64)
    return make_objective(model, [Batch(((x,), {}, y), 6)], loss_terms("cross_entropy", {}))


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_products_through_recurrent_layers_are_those_of_the_cpu(
    layer: type[nn.RNNBase], device: torch.device
) -> None:
    model = Last(layer)
    found = []
    for where in ("cpu", device):
        operator = Hessian(objective_on(where, model))
        assert not operator.finite_differences
        v_N = torch.linspace(-1, 1, operator.n, dtype=torch.float64).to(where)
        found.append(torch.stack([operator.matvec(v_N), operator.gradient]).cpu())
    torch.testing.assert_close(found[1], found[0], rtol=_RELATIVE, atol=1e-12)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_gradients_through_cells_are_those_of_the_cpu(
    cell: type[nn.RNNCellBase], device: torch.device
) -> None:
    """The last state of a fused cell has an output that nothing uses; its hook is given no gradient."""
    model = Loop(cell)
    rows: list[list[tuple[str, Any]]] = []
    for where in ("cpu", device):
        answer = analyse("gradients", Subject(objective=objective_on(where, model)))
        rows.append([(r.name, r.activation_gradient_rms) for r in answer.result.layers])
    assert rows[0] == [(name, pytest.approx(value, rel=1e-6)) for name, value in rows[1]]


def test_a_script_knows_that_it_calls_recurrent_layers(device: torch.device) -> None:
    """A TorchScript program has no modules of torch's, and its layers are evaluated by native kernels all the same."""
    script = torch.jit.script(Last(nn.GRU).double())
    program = ScriptProgram(script.eval())
    assert program.calls_recurrent_layers
    assert not ScriptProgram(torch.jit.script(nn.Linear(2, 2)).eval()).calls_recurrent_layers


def test_an_exported_lstm_has_derivatives(device: torch.device, tmp_path: Path) -> None:
    """The layer is a call in the program's graph there."""
    model = Last(nn.LSTM).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of itself
        made = torch.export.export(model, (torch.randn(6, 5, 3),))
        torch.export.save(made, tmp_path / "lstm.pt2")
    torch.save({"x": torch.randn(6, 5, 3), "y": torch.arange(6) % 2}, tmp_path / "data.pt")
    gradients = []
    for where in ("cpu", str(device)):
        spec = TargetSpec(
            checkpoint=str(tmp_path / "lstm.pt2"), data=str(tmp_path / "data.pt"),
            loss="cross_entropy", device=where,
        )  # fmt: skip
        gradients.append(Subject(spec).objective.gradient().cpu())
    torch.testing.assert_close(*gradients)
