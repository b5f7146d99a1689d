"""One forward pass: loss against constants, outputs, inputs, classes, running statistics, frozen layers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvcli import analyse, load
from curvcli.analyses.gradients.result import GradientsResult
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.subject import Subject
from tests.conftest import MakeObjective


def data(samples: int = 60, classes: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 4), torch.arange(samples) % classes


def net(*more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3), *more)


def asked(objective: Any, **options: Any) -> Answer[GradientsResult]:
    answer: Answer[GradientsResult] = analyse("gradients", Subject(objective=objective), **options)
    return answer


def rules(answer: Answer[GradientsResult]) -> dict[str, str]:
    return {f.rule.removeprefix("gradients."): f.severity for f in answer.findings}


def test_constants_are_what_the_counts_say(make_objective: MakeObjective) -> None:
    """Entropy of the class shares, ln C, accuracy and majority, by hand; ragged batches change nothing."""
    x, y = torch.randn(10, 4), torch.tensor([0] * 7 + [1] * 2 + [2])
    model = net()
    result = asked(make_objective(model, x, y, splits=[7, 3])).result
    sane = result.sanity
    assert sane is not None
    assert sane.class_counts == [7, 2, 1]
    assert sane.chance == pytest.approx(-sum(p * math.log(p) for p in (0.7, 0.2, 0.1)))
    assert sane.uniform == pytest.approx(math.log(3))
    assert sane.majority == pytest.approx(0.7)
    right = (model(x).argmax(1) == y).double().mean()
    assert sane.accuracy == pytest.approx(float(right))


def test_the_constant_of_a_regression_is_the_mean(make_objective: MakeObjective) -> None:
    """mse of the mean is the variance of the targets."""
    y = torch.randn(30, 2)
    sane = asked(make_objective(nn.Linear(4, 2), torch.randn(30, 4), y, "mse")).result.sanity
    assert sane is not None
    assert sane.chance == pytest.approx(float(y.var(0, correction=0).mean()), rel=1e-5)


def test_softmax_twice_is_said(make_objective: MakeObjective) -> None:
    """Outputs that sum to one under cross_entropy are an error, logits are none."""
    x, y = data()
    assert rules(asked(make_objective(net(nn.Softmax(1)), x, y)))["softmax-twice"] == "error"
    assert "softmax-twice" not in rules(asked(make_objective(net(), x, y)))


def test_probabilities_under_a_loss_of_logits_are_said(make_objective: MakeObjective) -> None:
    """bce_with_logits after a sigmoid, and nll without log_softmax."""
    x, y = data()
    hot = nn.functional.one_hot(y, 3).float()
    found = asked(make_objective(net(nn.Sigmoid()), x, hot, "bce_with_logits"))
    assert rules(found)["sigmoid-twice"] == "warning"
    assert rules(asked(make_objective(net(), x, y, "nll")))["not-log-probabilities"] == "error"
    right = asked(make_objective(net(nn.LogSoftmax(1)), x, y, "nll"))
    assert "not-log-probabilities" not in rules(right)


@pytest.mark.parametrize(
    ("scale", "rule"),
    [
        (127.0, "inputs-large"),
        (7.7, "inputs-large"),
        (0.1, "inputs-small"),
        (1 / 255, "inputs-small"),
    ],
)
def test_pixels_of_a_wrong_scale_are_said(
    make_objective: MakeObjective, scale: float, rule: str
) -> None:
    """Of images by channel, with the figure; inputs of RMS 1 are not."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    x, y = torch.randn(30, 2, 4, 4), torch.arange(30) % 3
    wrong = x * torch.tensor([1.0, scale])[:, None, None]
    found = next(
        f for f in asked(make_objective(model, wrong, y)).findings if f.rule.endswith(rule)
    )
    assert found.subject == "input 0, channel 1"
    assert found.value == pytest.approx(float(wrong[:, 1].square().mean().sqrt()), rel=1e-5)
    assert rule not in rules(asked(make_objective(model, x, y)))


def test_one_hot_inputs_are_not_small(make_objective: MakeObjective) -> None:
    """Their RMS is 1/√C by zeros alone; a hundredth of them is in another unit."""
    x, y = torch.eye(60), torch.arange(60) % 3
    assert "inputs-small" not in rules(asked(make_objective(nn.Linear(60, 3), x, y)))
    assert "inputs-small" in rules(asked(make_objective(nn.Linear(60, 3), x / 100, y)))


def test_running_statistics_of_other_data_are_said(make_objective: MakeObjective) -> None:
    """A variance of 1e6 times the data's; statistics that were gathered on the data are in order."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x, y = data()
    for _ in range(200):
        model(x)
    assert "running-statistics" not in rules(asked(make_objective(model, x, y)))
    norm = model.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_var is not None
    norm.running_var *= 1e6
    answer = asked(make_objective(model, x, y))
    assert rules(answer)["running-statistics"] == "warning"
    sane = answer.result.sanity
    assert sane is not None
    assert sane.running[0].variance_ratio == pytest.approx(1e-6, rel=0.05)


def test_a_dead_network_is_an_error(make_objective: MakeObjective) -> None:
    """A wholly dead layer, a constant output, a loss at chance, and where no gradient arrives."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model.get_parameter("2.bias").data.fill_(-100.0)
    model.get_parameter("4.bias").data.zero_()
    x, y = data()
    answer = asked(make_objective(model, x, y))
    found = rules(answer)
    assert {"dead-layer", "chance-dead", "constant-output", "zero-gradient"} <= found.keys()
    assert all(found[r] == "error" for r in ("dead-layer", "chance-dead", "constant-output"))
    zero = next(f for f in answer.findings if f.rule == "gradients.zero-gradient")
    assert "no gradient reaches 0 to 2" in zero.message
    saddle = analyse("saddle", Subject(objective=make_objective(model, x, y)))
    if saddle.result.verdict in ("flat-minimum", "local-minimum"):
        assert "saddle.at-chance" in {f.rule for f in saddle.findings}


def test_labels_without_signal_are_a_note(make_objective: MakeObjective) -> None:
    """Loss at chance with gradients that arrive: not learned, shuffled labels among the causes."""
    x, y = torch.randn(300, 4), torch.randint(0, 3, (300,))
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    answer = asked(make_objective(model, x, y))
    assert rules(answer)["not-learned"] == "note"
    assert "shuffled" in next(f.message for f in answer.findings if "not-learned" in f.rule)


def test_frozen_layers_and_rare_classes_are_notes(make_objective: MakeObjective) -> None:
    """Each is said once, and neither fails anything."""
    model = net()
    model[0].weight.requires_grad_(False)
    x = torch.randn(60, 4)
    y = torch.tensor([0] * 57 + [1] * 3)
    found = rules(asked(make_objective(model, x, y)))
    assert (found["frozen"], found["imbalance"]) == ("note", "note")


@pytest.mark.parametrize("cause", ["frozen", "not-stepped", "no-gradient"])
def test_what_has_not_moved_since_a_checkpoint_is_named_with_its_cause(
    make_objective: MakeObjective, tmp_path: Path, cause: str
) -> None:
    """One tensor that kept its values: frozen, left out of the optimizer, or used by nothing; the rest moved."""
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "spare": nn.Linear(2, 2)})
    model.forward = model["used"].forward
    torch.save(model.state_dict(), tmp_path / "before.pt")
    still = "spare.weight" if cause == "no-gradient" else "used.weight"
    for name, p in model.named_parameters():
        p.data += 0.1 * (name != still)
    model.get_parameter(still).requires_grad_(cause != "frozen")
    x, y = data()
    answer = asked(make_objective(model, x, y), since=str(tmp_path / "before.pt"))
    assert [(u.name, u.cause) for u in answer.result.unmoved] == [(still, cause)]
    assert rules(answer)["unmoved"] == "warning"
    assert "unmoved" not in rules(asked(make_objective(model, x, y)))


def test_the_same_weights_are_called_the_same(
    make_objective: MakeObjective, tmp_path: Path
) -> None:
    """Nothing has moved: no parameter is singled out."""
    model, (x, y) = net(), data()
    torch.save(model.state_dict(), tmp_path / "same.pt")
    answer = asked(make_objective(model, x, y), since=str(tmp_path / "same.pt"))
    assert "the same weights" in next(f.message for f in answer.findings if "unmoved" in f.rule)


def test_outputs_that_are_nearly_alike_keep_their_spread(make_objective: MakeObjective) -> None:
    """Outputs of 1000 that differ by 1e-9 in batches: the spread is that of numpy, not what squares leave of it."""
    model = nn.Linear(1, 1).double()
    model.weight.data.fill_(1e-9)
    model.bias.data.fill_(1000.0)
    x = torch.randn(40, 1, dtype=torch.float64)
    sane = asked(
        make_objective(model, x, torch.randn(40, 1).double(), "mse", splits=[30, 10])
    ).result.sanity
    assert sane is not None
    outputs = model(x).detach().numpy()
    # Outputs of 1000 are rounded to 1e-13, their deviation of 1e-9 to 1e-4 of itself.
    assert sane.output_spread == pytest.approx(outputs.std() / 1000, rel=1e-4)


@pytest.mark.parametrize("given", ["some", "all", "one of two alike"])
def test_what_the_optimizer_does_not_move_is_a_note(given: str, tmp_path: Path) -> None:
    """By the state in the checkpoint itself; a part that it does not tell is counted."""
    torch.manual_seed(0)
    x, y = data()
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    chosen = {
        "some": [*model[1].parameters(), *model[2].parameters()],
        "all": list(model.parameters()),
        "one of two alike": list(model[0].parameters()),
    }[given]
    # Gradient descent keeps no state: of a part nothing is known but how many there are.
    momentum = 0.0 if given == "one of two alike" else 0.9
    optimizer = torch.optim.SGD(chosen, lr=0.01, momentum=momentum)
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
    answer = analyse("gradients", subject)
    told = [f.message for f in answer.findings if f.rule == "gradients.frozen"]
    idle = [(i.name, i.cause) for i in answer.result.idle]
    if given == "all":
        assert (told, idle) == ([], [])
    elif given == "some":
        assert idle == [("0.weight", "not-given"), ("0.bias", "not-given")]
        assert "does not move 2 of 6 parameters: 0.weight, 0.bias" in told[0]
    else:
        assert idle == []
        assert "has 2 of 6 parameters" in told[0]


def test_where_the_gradient_becomes_zero_is_named(make_objective: MakeObjective) -> None:
    """Behind a dead layer gradients arrive, and its weights have none as their inputs are zero."""
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    )  # fmt: skip
    with torch.no_grad():
        model.get_parameter("2.bias").fill_(-1e3)
    found = asked(make_objective(model, *data())).findings
    (told,) = [f.message for f in found if f.rule == "gradients.zero-gradient"]
    assert told.startswith(
        "no gradient reaches 0 to 2: it becomes zero at 3 (ReLU), where all units are dead; "
        "weights of 4 have none because all their inputs are zero"
    )


def test_one_loss_is_shown_in_a_coarse_type(make_objective: MakeObjective) -> None:
    """Pieces of a batch round otherwise in bfloat16: the figure is L of the objective, as in the answer's head."""
    torch.manual_seed(0)
    x, y = data(61)
    objective = make_objective(net().bfloat16(), x.bfloat16(), y)
    result = asked(objective).result
    assert result.sanity is not None
    assert result.loss == objective.loss == result.sanity.loss


def test_a_fresh_language_model_is_not_sure_of_anything(make_objective: MakeObjective) -> None:
    """Its loss is ln C, far above that of the few tokens in a batch; the same outputs times twenty are sure."""

    class Tokens(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.scale = scale
            self.embedding, self.head = nn.Embedding(2000, 16), nn.Linear(16, 2000)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.embedding(x)) * self.scale
            return out

    x, y = torch.arange(64) % 9, (torch.arange(64) + 3) % 7
    for scale, sure in ((1.0, False), (20.0, True)):
        answer = analyse("gradients", Subject(objective=make_objective(Tokens(scale), x, y)))
        assert any(f.rule == "gradients.sure-and-wrong" for f in answer.findings) is sure


def test_batch_norms_without_statistics_explain_a_loss_far_above_chance(
    make_objective: MakeObjective,
) -> None:
    """Fresh logits times twenty are sure of wrong answers; that no statistics were gathered says why, as a note."""
    torch.manual_seed(0)
    x, y = data(61)
    for batches, rule in ((0, "gradients.no-statistics"), (1, "gradients.sure-and-wrong")):
        model = nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
        with torch.no_grad():
            model.get_parameter("3.weight").mul_(60)
        for _ in range(batches):
            model.train()(x)
        found = asked(make_objective(model.eval(), x, y)).findings
        assert [f.rule for f in found if f.rule.endswith(("statistics", "and-wrong"))] == [rule]
