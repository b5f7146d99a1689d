"""`gradients` finds every ill sample and nothing in a healthy one, and names NaN where it arises."""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from curvcli import analyse
from curvcli.analyses.gradients.result import GradientsResult
from curvcli.analyses.gradients.rules import RULES, limits_of
from curvcli.analyses.gradients.view import view
from curvcli.analyses.shared.settings import resolve_target
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import UsageError
from curvcli.loading.loss import loss_terms
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective as objective_of
from curvcli.objective.terms import LossTerms
from curvcli.report.data import Bar, Finding, Table, json_schema
from tests.conftest import SAMPLES, MakeObjective
from tests.oracles.program import answer, run

HEALTHY = [
    "digits_mlp", "digits_cnn", "digits_lstm", "bytes_gpt", "saddle", "linear_regression",
]  # fmt: skip


def sample(name: str, **options: Any) -> tuple[GradientsResult, list[Finding]]:
    spec, _ = resolve_target(str(SAMPLES / f"{name}.toml"), {}, ("gradients",))
    context = Subject(spec)
    answer = analyse("gradients", context, **options)
    result = answer.result
    return result, answer.findings


def rules(findings: list[Finding]) -> set[str]:
    return {f.rule.removeprefix("gradients.") for f in findings}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_sample_has_no_finding(name: str) -> None:
    assert sample(name)[1] == []


def test_the_sigmoid_sample_vanishes() -> None:
    result, findings = sample("vanishing_sigmoid")
    first = findings[0]
    assert (first.rule, first.severity) == ("gradients.vanishing-depth", "error")
    assert first.value == result.depth_gain
    assert first.threshold == 1e-3
    assert "sigmoid" in first.message
    assert rules(findings) == {"vanishing-depth", "vanishing-layer", "constant-output"}
    assert result.depth_gain is not None
    assert result.depth_gain < 1e-10
    # The sample's README: 1.3e-12 in the first layer's weights, 3.8e-2 in the last one's biases and weights.
    assert result.layers[0].weight_gradient_rms == pytest.approx(2.8e-14, rel=0.1)


def test_the_exploding_sample_explodes() -> None:
    result, findings = sample("exploding")
    assert findings[0].rule == "gradients.exploding-depth"
    assert {"exploding-depth", "exploding-layer", "saturated"} <= rules(findings)
    assert "6.00" in findings[0].message, "names the weights' scale"
    assert result.depth_gain is not None
    assert 1e4 < result.depth_gain < 1e7


def test_the_dead_sample_names_the_layer() -> None:
    _, findings = sample("dead_relu")
    (finding,) = findings
    assert (finding.rule, finding.subject) == ("gradients.dead-units", "layers.relu3")
    assert finding.value == pytest.approx(0.766, abs=0.001)


def test_the_long_lstm_forgets() -> None:
    result, findings = sample("long_lstm")
    (finding,) = findings
    assert (finding.rule, finding.subject) == ("gradients.vanishing-time", "lstm.l0")
    assert "forget" in finding.message
    (trend,) = result.time
    assert trend.memory_horizon is not None
    assert 2 < trend.memory_horizon < 10


def scaled(factor: float) -> LossTerms:
    loss = loss_terms("cross_entropy", {})

    def terms(model: nn.Module, data: Any) -> tuple[Tensor, float]:
        total, count = loss(model, data)
        return factor * total, count

    return terms


def fresh(name: str) -> nn.Module:
    """Standard networks as PyTorch initialises them."""
    from tests.oracles.networks import fresh_gpt, fresh_lstm, fresh_mlp, fresh_resnet

    return {"mlp": fresh_mlp, "resnet": fresh_resnet, "lstm": fresh_lstm, "gpt": fresh_gpt}[name]()


@pytest.mark.parametrize("name", ["mlp", "resnet", "lstm", "gpt"])
@pytest.mark.parametrize("train_mode", [False, True])
def test_fresh_networks_have_no_finding_whatever_the_loss_is_multiplied_by(
    name: str, train_mode: bool
) -> None:
    torch.manual_seed(0)
    model = fresh(name)
    x: Tensor = torch.randint(64, (8, 24)) if name == "gpt" else torch.randn(32, 64)
    y = torch.randint(10, (8, 24) if name == "gpt" else (32,))
    gains = []
    for factor in (1e-6, 1.0, 1e6):
        batch = Batch(((x,), {}, y), len(x))
        context = Subject(
            objective=objective_of(model, [batch], scaled(factor), train_mode=train_mode)
        )
        answer = analyse("gradients", context)
        result = answer.result
        assert answer.findings == [], factor
        gains.append(result.depth_gain)
    assert gains == pytest.approx([gains[1]] * 3, rel=1e-4)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_an_ill_network_stays_ill_whatever_the_loss_is_multiplied_by(factor: float) -> None:
    torch.manual_seed(1)
    layers = [m for _ in range(12) for m in (nn.Linear(32, 32), nn.Sigmoid())]
    batch = Batch(((torch.randn(16, 32),), {}, torch.randint(10, (16,))), 16)
    context = Subject(
        objective=objective_of(nn.Sequential(*layers, nn.Linear(32, 10)), [batch], scaled(factor))
    )
    answer = analyse("gradients", context)
    assert "vanishing-depth" in rules(answer.findings)


@pytest.mark.parametrize(
    ("name", "tensor", "layer"),
    [
        ("digits_mlp", "fc2.weight", "fc2"),
        ("digits_cnn", "features.4.running_var", "features.4"),
        ("digits_cnn", "features.7.weight", "features.7"),
        ("bytes_gpt", "blocks.1.attention.proj.bias", "blocks.1.attention.proj"),
        ("digits_lstm", "lstm.weight_hh_l0", "lstm"),
    ],
)
def test_nan_is_reported_at_its_layer_and_json_stays_valid(
    name: str, tensor: str, layer: str, tmp_path: Path
) -> None:
    tensors = load_file(SAMPLES / f"{name}.safetensors")
    tensors[tensor].view(-1)[0] = math.nan
    save_file(tensors, tmp_path / "bad.safetensors")
    text = (SAMPLES / f"{name}.toml").read_text()
    text = text.replace(f'"{name}.safetensors"', f'"{tmp_path / "bad.safetensors"}"')
    text = text.replace('"models.py', f'"{SAMPLES}/models.py')
    (tmp_path / "bad.toml").write_text(text.replace('data = "', f'data = "{SAMPLES}/'))
    done = run("gradients", str(tmp_path / "bad.toml"), "--format", "json", "--strict")
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout, parse_constant=pytest.fail)
    jsonschema.validate(answer, json_schema(GradientsResult))
    assert answer["result"]["first_nonfinite"] == layer
    (finding,) = answer["findings"]
    assert (finding["rule"], finding["subject"]) == ("gradients.nonfinite", layer)
    assert finding["value"] >= 1
    assert answer["result"]["loss"] is None


def test_a_loss_that_overflows_is_named(make_objective: MakeObjective) -> None:
    """Outputs of 1e20 are finite, the squares of their errors are not."""
    model: Any = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.fill_(1e20)
    objective = make_objective(
        model, torch.randn(8, 4), torch.randn(8, 2), "mse", accept_nonfinite=True
    )
    answer = analyse("gradients", Subject(objective=objective))
    assert answer.result.loss is None
    assert ("gradients.nonfinite", "loss") in [(f.rule, f.subject) for f in answer.findings]


@pytest.mark.parametrize(
    ("width", "dead", "ill"), [(16, 10, False), (16, 15, True), (128, 96, True)]
)
def test_half_of_the_units_may_be_dead_by_chance(
    width: int, dead: int, ill: bool, make_objective: MakeObjective
) -> None:
    """10 of 16 is one standard deviation of a fair coin above one half, 15 are three and a half."""
    model: Any = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
    with torch.no_grad():
        model[0].bias.fill_(10.0)
        model[0].bias[:dead] = -10.0
    context = Subject(objective=make_objective(model, torch.rand(8, 4), torch.randint(2, (8,))))
    answer = analyse("gradients", context)
    layer = answer.result.layers[1]
    assert (layer.dead_fraction, layer.units) == (dead / width, width)
    assert ("gradients.dead-units" in [f.rule for f in answer.findings]) == ill


def test_nan_that_arises_on_the_way_back_is_named(make_objective: MakeObjective) -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.detach()).sqrt() + x

    model = nn.Sequential(nn.Linear(4, 4), Root(), nn.Linear(4, 3))
    objective = make_objective(model, torch.randn(6, 4), torch.randint(3, (6,)))
    context = Subject(objective=objective)
    answer = analyse("gradients", context)
    result = answer.result
    assert result.first_nonfinite is None
    assert [(f.rule, f.subject) for f in answer.findings] == [("gradients.nonfinite", "0")]


def test_thresholds_can_be_set() -> None:
    assert sample("dead_relu", thresholds={"dead-units": 0.8})[1] == []
    assert sample("dead_relu", thresholds={"gradients.dead-units": 0.8})[1] == []
    _, findings = sample("digits_mlp", thresholds={"dead-units": -1.0})
    assert {f.subject for f in findings} == {"gelu()", "gelu()#2"}
    assert all(f.threshold == -1.0 for f in findings)
    with pytest.raises(UsageError, match="vanishing-depth"):
        limits_of({"vanishing-deph": 1.0})


def test_every_rule_has_a_source_and_its_threshold_can_be_changed() -> None:
    assert all(rule.source for rule in RULES.values())
    assert limits_of(dict.fromkeys(RULES, 7.0)) == dict.fromkeys(RULES, 7.0)


def test_thresholds_of_the_target_file_and_the_command_line_are_merged(tmp_path: Path) -> None:
    text = (SAMPLES / "dead_relu.toml").read_text()
    for key in ("checkpoint", "model", "data"):
        text = text.replace(f'{key} = "', f'{key} = "{SAMPLES}/')
    (tmp_path / "t.toml").write_text(text + "\n[gradients.thresholds]\ndead-units = 0.8\n")
    quiet = run("gradients", str(tmp_path / "t.toml"), "--format", "json")
    assert json.loads(quiet.stdout)["findings"] == []
    flag = ("--threshold", "exploding-depth=2")
    both = run("gradients", str(tmp_path / "t.toml"), "--format", "json", *flag)
    assert {f["rule"] for f in json.loads(both.stdout)["findings"]} == {"gradients.exploding-depth"}
    wrong = run("gradients", str(tmp_path / "t.toml"), "--threshold", "dead=1")
    assert wrong.returncode == 2
    assert "dead-units" in wrong.stderr


def test_update_ratios_need_a_learning_rate() -> None:
    assert sample("digits_mlp", learning_rate=1e-2)[1] == []
    _, findings = sample("digits_mlp", learning_rate=10.0)
    assert rules(findings) == {"update-large"}


def test_a_collapsed_head_is_found(make_objective: MakeObjective) -> None:
    torch.manual_seed(2)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight[:16] *= 1e3

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.attention(x, x, x)[0].mean(1))

    objective = make_objective(Net(), torch.randn(6, 9, 8), torch.randint(3, (6,)))
    context = Subject(objective=objective)
    answer = analyse("gradients", context)
    (finding,) = [f for f in answer.findings if f.rule == "gradients.attention-collapse"]
    assert finding.subject == "attention"


def test_the_table_has_bars_on_a_log_scale_and_folds() -> None:
    result, _ = sample("vanishing_sigmoid", worst=6)
    table = next(b for b in view(result) if isinstance(b, Table))
    assert len(table.rows) == 6
    assert len(result.layers) == 39
    whole, _ = sample("vanishing_sigmoid")
    table = next(b for b in view(whole) if isinstance(b, Table))
    names = [row[0] for row in table.rows]
    assert names == [s.name for s in whole.layers], "execution order"
    shares = [c.share for row in table.rows for c in row if isinstance(c, Bar)]
    assert len(shares) == 39
    linear = shares[::2]
    assert linear == sorted(linear)
    # On a log scale a constant factor a layer is a straight line.
    steps = [b - a for a, b in itertools.pairwise(linear)][:-2]
    assert max(steps) < 2 * min(steps)


@pytest.mark.parametrize("name", ["bytes_gpt", "digits_cnn", "long_lstm", "exploding"])
def test_nothing_is_wider_than_a_terminal_of_80_columns(name: str) -> None:
    done = run("gradients", str(SAMPLES / f"{name}.toml"), COLUMNS="80")
    assert "█" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_findings_say_ratios_in_three_digits(samples: Path) -> None:
    """What explodes, vanishes or fades does so to so many times its norm."""
    told = {
        name: answer("gradients", str(samples / f"{name}.toml"))[1]["verdict"]["sentence"]
        for name in ("exploding", "vanishing_sigmoid", "long_lstm")
    }
    assert re.search(r"to 146,000 times its norm \(1\.87 times a layer\)", told["exploding"])
    assert re.search(
        r"to 1\.\d\de-12 times its norm \(0\.\d{3} times a layer\)", told["vanishing_sigmoid"]
    )
    assert re.search(
        r"fades to 9\.\d\de-12 times its norm over 100 steps \(to 1/e in 3\.9 steps\)",
        told["long_lstm"],
    )
