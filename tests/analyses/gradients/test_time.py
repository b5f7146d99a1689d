"""`gradients` follows recurrent layers and attention through time as cells stepped by hand and closed forms do."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from curvcli import analyse
from curvcli.analyses.gradients.result import GradientsResult, TimeTrend
from curvcli.analyses.shared.subject import Subject
from curvcli.loading.loss import loss_terms
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective as objective_of
from curvcli.operators.recurrent.gradients import gradients_of_states
from curvcli.operators.recurrent.lag import lag_norms
from curvcli.operators.recurrent.time import unroll
from curvcli.operators.signals.attention import head_entropy
from tests.conftest import MakeObjective

KINDS: list[tuple[Any, dict[str, Any]]] = [
    (nn.RNN, {}),
    (nn.RNN, {"nonlinearity": "relu"}),
    (nn.GRU, {}),
    (nn.LSTM, {}),
    (nn.LSTM, {"proj_size": 3}),
]
CELLS: dict[str, Any] = {
    "RNN_TANH": nn.RNNCell,
    "GRU": nn.GRUCell,
    "LSTM": nn.LSTMCell,
}


def run(model: nn.Module, x: Tensor, y: Tensor, make: MakeObjective) -> GradientsResult:
    return analyse("gradients", Subject(objective=make(model, x, y, "mse"))).result


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_unrolled_layer_gives_its_own_output(
    kind: Any, options: dict[str, Any], bidirectional: bool, layers: int
) -> None:
    torch.manual_seed(0)
    module = kind(4, 6, num_layers=layers, bidirectional=bidirectional, **options).double()
    x = torch.randn(9, 3, 4, dtype=torch.float64)
    lengths = torch.tensor([4, 9, 6])
    output, final = module(x)
    run_ = unroll(module, x)
    # A few hundred operations of relative error 1e-16 each.
    torch.testing.assert_close(run_.output_TBH, output, rtol=1e-13, atol=1e-13)
    final = final if isinstance(final, tuple) else (final,)
    for mine, theirs in zip(run_.final, final, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, final = module(packed)
    run_ = unroll(module, packed)
    padded, _ = pad_packed_sequence(output)
    torch.testing.assert_close(run_.output_TBH, padded, rtol=1e-13, atol=1e-13)
    assert run_.error(padded) < 1e-13


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_states_taken_from_the_output(
    kind: Any, options: dict[str, Any], bidirectional: bool, layers: int, packed: bool
) -> None:
    """With the module's own output no step of the last layer is run: the same states, and a foreign output is seen."""
    torch.manual_seed(12)
    module = kind(4, 6, num_layers=layers, bidirectional=bidirectional, **options).double()
    x: Any = torch.randn(9, 3, 4, dtype=torch.float64)
    if packed:
        x = pack_padded_sequence(x, torch.tensor([4, 9, 6]), enforce_sorted=False)
    output, final = module(x)
    run_ = unroll(module, x, output=output)
    padded = pad_packed_sequence(output)[0] if packed else output
    assert run_.error(padded) < 1e-13
    final = final if isinstance(final, tuple) else (final,)
    for mine, theirs in zip(run_.final, final, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13)
    data = output.data if packed else output
    wrong = 0.9 * data
    assert (
        unroll(module, x, output=output._replace(data=wrong) if packed else wrong).error(
            0.9 * padded
        )
        > 1e-3
    )


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_of_states_give_that_of_the_initial_state(
    kind: Any, options: dict[str, Any], bidirectional: bool, packed: bool
) -> None:
    """One step further back than the first is the initial state, whose gradient autograd knows for any layer."""
    torch.manual_seed(13)
    module = kind(4, 6, num_layers=2, bidirectional=bidirectional, **options).double()
    rows = 4 if bidirectional else 2
    x: Any = torch.randn(7, 3, 4, dtype=torch.float64)
    if packed:
        x = pack_padded_sequence(x, torch.tensor([7, 5, 2]))
    widths = [module.proj_size or 6, 6][: 2 if module.mode == "LSTM" else 1]
    start = [torch.randn(rows, 3, w, dtype=torch.float64, requires_grad=True) for w in widths]
    hx = tuple(start) if len(start) == 2 else start[0]
    output, final = module(x, hx)
    data = output.data if packed else output
    final = final if isinstance(final, tuple) else (final,)
    weights = [torch.randn_like(t) for t in (data, *final)]
    loss = sum((w * t).sum() for w, t in zip(weights, (data, *final), strict=True))
    expected = torch.autograd.grad(loss, start, retain_graph=True)
    run_ = unroll(module, x, hx, output=output)
    upstream = weights[0]
    if packed:
        upstream = pad_packed_sequence(output._replace(data=upstream))[0]
    states, initial = gradients_of_states(run_, upstream, tuple(weights[1:]))
    for found, true in zip(initial, expected, strict=True):
        # A few hundred operations of relative error 1e-16 each.
        torch.testing.assert_close(found, true, rtol=1e-12, atol=1e-13)
    assert [tuple(s.shape) for s in states] == [(7, 3, widths[0])] * rows


def by_hand(module: nn.RNNBase, x_TBI: Tensor) -> list[Tensor]:
    """The states of one layer by torch's own cell, each a node of the graph."""
    cell = CELLS[module.mode](module.input_size, module.hidden_size).to(x_TBI.dtype)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in module.state_dict().items()})
    state: Any = None
    states = []
    for x_BI in x_TBI:
        state = cell(x_BI, state)
        states.append(state[0] if isinstance(state, tuple) else state)
    return states


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_time_jacobians_against_dense_ones(kind: Any) -> None:
    torch.manual_seed(1)
    module = kind(3, 5).double()
    x = torch.randn(7, 4, 3, dtype=torch.float64)
    states = by_hand(module, x)
    dense = torch.zeros(7, dtype=torch.float64)
    for unit in range(5):
        parts = torch.autograd.grad(states[-1][:, unit].sum(), states, retain_graph=True)
        dense += torch.stack([p.square().sum() for p in parts])
    expected = (dense.flip(0) / 4 / 5).sqrt()
    (recurrence,) = unroll(module, x).recurrences
    exact = lag_norms(recurrence)
    assert exact.errors_T is None
    torch.testing.assert_close(exact.norms_T, expected, rtol=1e-12, atol=0)
    # Float32: products of relative error 1e-7.
    (short,) = unroll(module, x, dtype=torch.float32).recurrences
    single = lag_norms(short, dtype=torch.float64)
    assert single.norms_T.dtype == torch.float64
    torch.testing.assert_close(single.norms_T, expected, rtol=3e-6, atol=0)
    estimated = lag_norms(recurrence, exact_units=0, probes=400)
    assert estimated.errors_T is not None
    # Five standard errors.
    assert ((estimated.norms_T - expected).abs() <= 5 * estimated.errors_T).all()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_single_precision_gives_way_where_its_range_ends(scale: float) -> None:
    """∂h_T/∂h_t = (scale · 1)ᵏ at zero input, over 15 orders of magnitude and more."""
    torch.manual_seed(14)
    module = nn.RNN(2, 4, bias=False).double()
    nn.init.eye_(module.get_parameter("weight_hh_l0"))
    with torch.no_grad():
        module.get_parameter("weight_hh_l0").mul_(scale)
    (recurrence,) = unroll(module, torch.zeros(9, 2, 2), dtype=torch.float32).recurrences
    found = lag_norms(recurrence, dtype=torch.float64).norms_T
    expected = torch.tensor([scale**k for k in range(9)], dtype=torch.float64)
    # The weights are rounded to float32: a relative error of 6e-8 a step.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_lag_of_packed_sequences_ends_where_each_does() -> None:
    torch.manual_seed(2)
    module = nn.GRU(3, 4).double()
    x, lengths = torch.randn(6, 2, 3, dtype=torch.float64), [6, 3]
    (recurrence,) = unroll(module, pack_padded_sequence(x, torch.tensor(lengths))).recurrences
    single = [
        lag_norms(unroll(module, x[:n, i : i + 1]).recurrences[0]).norms_T
        for i, n in enumerate(lengths)
    ]
    found = lag_norms(recurrence).norms_T
    both = ((single[0][:3] ** 2 + single[1] ** 2) / 2).sqrt()
    torch.testing.assert_close(found[:3], both)
    torch.testing.assert_close(found[3:], single[0][3:])


def test_a_linear_recurrence_decays_by_its_own_factor(make_objective: MakeObjective) -> None:
    """With zero input tanh is linear: ∂h_T/∂h_t = Wᵀ to the lag, W = 0.8 Q."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(2, 8, bias=False, batch_first=True)
            self.head = nn.Linear(8, 1)
            nn.init.orthogonal_(self.rnn.get_parameter("weight_hh_l0"), 0.8)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.rnn(x)[0][:, -1])

    result = run(Net(), torch.zeros(6, 40, 2), torch.randn(6, 1), make_objective)
    (trend,) = result.time
    assert (trend.name, trend.kind, trend.steps) == ("rnn.l0", "RNN", 40)
    # Weights are float32: 40 products of relative error 1e-7.
    assert trend.lag == pytest.approx([0.8**k for k in range(40)], rel=1e-5)
    assert trend.decay == pytest.approx(0.8, rel=1e-6)
    assert trend.memory_horizon == pytest.approx(-1 / math.log(0.8), rel=1e-5)
    assert trend.gain_per_step == pytest.approx(0.8, rel=1e-6)
    assert trend.gradient_gain == pytest.approx(0.8**39, rel=1e-4)


def test_a_short_memory_beside_a_long_sequence_is_a_finding(make_objective: MakeObjective) -> None:
    """−1/ln 0.8 = 4.5 of 56 steps is below a tenth, of 20 steps it is not."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(2, 8, bias=False, batch_first=True)
            self.head = nn.Linear(8, 1)
            nn.init.orthogonal_(self.rnn.get_parameter("weight_hh_l0"), 0.8)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.rnn(x)[0][:, -1])

    def rules(steps: int) -> list[str]:
        objective = make_objective(Net(), torch.zeros(6, steps, 2), torch.randn(6, 1), "mse")
        found = analyse("gradients", Subject(objective=objective)).findings
        return [f.rule for f in found]

    assert "gradients.short-memory" in rules(56)
    assert "gradients.short-memory" not in rules(20)


class Sequence(nn.Module):
    """A recurrent layer, optionally on packed input, whose last states are read."""

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self.module = module
        self.head = nn.Linear(module.hidden_size * (2 if module.bidirectional else 1), 2)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Any:
        if lengths is None:
            return self.head(self.module(x)[0][:, -1])
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.module(packed)[0], batch_first=True)
        return self.head(states.sum(1))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_gradients_by_step_against_a_loop_over_cells(
    kind: Any, make_objective: MakeObjective
) -> None:
    torch.manual_seed(3)
    model = Sequence(kind(3, 5, batch_first=True))
    x, y = torch.randn(8, 11, 3), torch.randn(8, 2)
    (trend,) = run(model, x, y, make_objective).time
    states = by_hand(model.module.double(), x.double().transpose(0, 1))
    # The objective's W counts 16 elements, a sample's loss is the mean over its two.
    loss = F.mse_loss(model.head.double()(states[-1]), y.double()) * 8
    parts = torch.autograd.grad(loss, states)
    expected = [float((p.square().sum() / 8).sqrt()) for p in parts]
    assert trend.gradient == pytest.approx(expected, rel=1e-4)
    assert trend.output_error is not None
    assert trend.output_error < 1e-5


def test_packed_gradients_by_step() -> None:
    """Each sequence on its own, unpacked, gives the same gradients up to its own end."""
    torch.manual_seed(4)
    lengths = [5, 2, 4]
    model = Sequence(nn.GRU(3, 5, batch_first=True))
    x, y = torch.randn(3, 5, 3), torch.randn(3, 2)
    batch = Batch(((x, torch.tensor(lengths)), {}, y), 3)
    objective = objective_of(model, [batch], loss_terms("mse", {}))
    trend = analyse("gradients", Subject(objective=objective)).result.time[0]
    double = model.double()
    squares, counts = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for i, n in enumerate(lengths):
        states = by_hand(double.module, x[i : i + 1, :n].double().transpose(0, 1))
        loss = F.mse_loss(double.head(sum(states[1:], start=states[0])), y[i : i + 1].double())
        for t, part in enumerate(torch.autograd.grad(loss, states)):
            squares[t] += part.square().sum()
            counts[t] += 1
    assert trend.gradient == pytest.approx((squares / counts).sqrt().tolist(), rel=1e-4)


def test_layers_and_directions_each_have_a_trend(make_objective: MakeObjective) -> None:
    torch.manual_seed(5)
    model = Sequence(nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True))
    result = run(model, torch.randn(6, 7, 3), torch.randn(6, 2), make_objective)
    names = [t.name for t in result.time]
    assert names == [f"module.l{k}{r}" for k in (0, 1) for r in ("", " reverse")]
    assert all(set(t.gates) == {"input", "forget", "output"} for t in result.time)
    # The head reads the last position: the reverse direction's very first step.
    top = result.time[3].gradient
    assert top[0] is not None
    assert top[0] > 0
    assert top[1:] == [0.0] * 6


def forget_bias(bias: float, make_objective: MakeObjective) -> TimeTrend:
    torch.manual_seed(6)
    model: Any = Sequence(nn.LSTM(2, 16, batch_first=True))
    with torch.no_grad():
        model.module.bias_ih_l0[16:32] = bias
        model.module.bias_hh_l0[16:32] = 0.0
    (trend,) = run(model, torch.randn(8, 200, 2), torch.randn(8, 2), make_objective).time
    return trend


def test_a_forget_bias_of_one_remembers_longer(make_objective: MakeObjective) -> None:
    zero, one = (forget_bias(b, make_objective) for b in (0.0, 1.0))
    assert zero.decay is not None
    assert one.decay is not None
    # Both close to the forget gate itself, σ(0) = 0.5 and σ(1) = 0.73, times what recurs through the gates.
    assert 0.45 < zero.decay < 0.75
    assert 0.68 < one.decay < 0.9
    assert one.memory_horizon is not None
    assert zero.memory_horizon is not None
    assert one.memory_horizon > 1.5 * zero.memory_horizon
    assert one.gates["forget"].mean == pytest.approx(0.73, abs=0.03)
    assert zero.gradient_gain is not None
    assert one.gradient_gain is not None
    assert zero.gradient_gain < 1e-20 * one.gradient_gain


def explicit_entropy(weights_BHLS: Tensor, seen_L: Tensor) -> Any:
    entropy = torch.special.entr(weights_BHLS.double()).sum(-1)
    return (entropy / seen_L.clamp_min(2).log())[..., seen_L >= 2].mean((0, 2))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_entropy_is_that_of_the_explicit_weights(causal: bool) -> None:
    torch.manual_seed(7)
    q, k, v = (2 * torch.randn(3, 4, 6, 8) for _ in range(3))
    scores = q @ k.mT / math.sqrt(8)
    seen = torch.full((6,), 6.0)
    if causal:
        scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
        seen = torch.arange(1.0, 7.0)
    expected = explicit_entropy(scores.softmax(-1), seen).float()
    torch.testing.assert_close(head_entropy(q, k, v, is_causal=causal), expected)
    if not causal:
        mask = torch.zeros(3, 1, 6, 6)
        torch.testing.assert_close(head_entropy(q, k, v, mask), expected)
    uniform = head_entropy(torch.zeros_like(q), k, v, is_causal=causal)
    torch.testing.assert_close(uniform, torch.ones(4))
    single = head_entropy(1e4 * q, k, v, is_causal=causal)
    assert single.max() < 1e-3


def test_attention_inside_a_module_fused_and_not(make_objective: MakeObjective) -> None:
    torch.manual_seed(8)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fused = nn.MultiheadAttention(8, 2, batch_first=True)
            self.qkv = nn.Linear(8, 24)

        def forward(self, x: Tensor) -> Any:
            x = x + self.fused(x, x, x, need_weights=False)[0]
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
            y = torch.softmax(q @ k.mT / 2, -1) @ v
            return y.transpose(1, 2).reshape(x.shape)

    model = Net()
    x = torch.randn(5, 7, 8)
    result = run(model, x, torch.randn(5, 7, 8), make_objective)
    by_name = {h.name: h for h in result.attention}
    assert (by_name["fused"].fused, by_name["Net"].fused) == (True, False)
    _, weights = model.fused(x, x, x, average_attn_weights=False)
    expected = explicit_entropy(weights.detach(), torch.full((7,), 7.0)).tolist()
    assert by_name["fused"].entropy == pytest.approx(expected, rel=1e-4)
    (positions,) = result.time
    assert (positions.kind, positions.steps) == ("positions", 7)


@pytest.mark.parametrize("kind", ["causal", "padding", "both"])
def test_masked_multi_head_attention(kind: str, make_objective: MakeObjective) -> None:
    """The share is of the keys that a query may see, not of those it happens to look at."""
    torch.manual_seed(9)
    causal = torch.ones(6, 6).triu(1).bool() if kind != "padding" else None
    padding = torch.arange(6).expand(4, 6) >= 4 if kind != "causal" else None

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            mask = None if padding is None else padding[: len(x)]
            return self.attention(x, x, x, key_padding_mask=mask, attn_mask=causal)[0]

    model, x = Net(), torch.randn(4, 6, 8)
    (head,) = run(model, x, torch.randn(4, 6, 8), make_objective).attention
    _, weights = model.attention(
        x, x, x, key_padding_mask=padding, attn_mask=causal, average_attn_weights=False
    )
    seen = torch.full((6,), 6.0) if causal is None else torch.arange(1.0, 7.0)
    seen = seen.clamp_max(4.0) if padding is not None else seen
    expected = explicit_entropy(weights.detach(), seen).tolist()
    assert head.entropy == pytest.approx(expected, rel=1e-4)
