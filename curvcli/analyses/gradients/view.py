"""How the answer of `curvcli gradients` looks: a row and a bar for each layer."""

import math
from collections.abc import Callable
from statistics import median

from curvcli.analyses.gradients.result import GradientsResult, LayerSignal, Spread, TimeTrend
from curvcli.report.data import Bar, Block, Cell, Column, Facts, HeatMap, Measured, State, Table
from curvcli.report.numbers import number

# Without --worst, a network with more rows than twice this is folded to so many.
_FOLDED = 60
# Decades that a full bar stands for at least: equal gradients have equal, not exaggerated, bars.
_DECADES = 3.0
# Share of dead or saturated units that is coloured.
_MANY = 0.5
# A smaller share is not written out.
_LEAST = 1e-3
_MARKS = {"trunk": "", "branch": "└", "sum": "+", "unreached": ""}


def view(result: GradientsResult) -> list[Block]:
    """The layers, what happens along depth, time and attention, the noise."""
    blocks: list[Block] = [_summary(result), _layers(result), *_map(result)]
    if result.time:
        blocks += _time(result.time)
    if result.attention:
        blocks.append(_attention(result))
    if result.initialisations:
        blocks.append(_initialisations(result))
    return blocks


def _summary(result: GradientsResult) -> Facts:
    noise = result.noise
    rows: list[tuple[str, Cell]] = [
        ("loss", result.loss),
        ("gain per layer", _with_interval(result.gain_per_layer, result.gain_per_layer_interval)),
        ("gain over the depth", _with_interval(result.depth_gain, result.depth_gain_interval)),
    ]
    if result.residual_growth is not None:
        rows.append(("growth of the residual stream", result.residual_growth))
    if noise is not None:
        rows += [
            (
                "critical batch size",
                Measured(noise.critical_batch_size, noise.critical_batch_size_error)
                if noise.critical_batch_size is not None
                else "not known: the gradient is within its noise",
            ),
            ("signal to noise", Measured(noise.signal_to_noise, noise.signal_to_noise_error)),
        ]
    return Facts(rows)


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "—"
    if interval is None:
        return number(value)
    return f"{number(value)}  [{number(interval[0], 3)}, {number(interval[1], 3)}]"


def _layers(result: GradientsResult) -> Table:
    shown, hidden = _fold(result)
    logs = [math.log10(g) for s in result.layers if (g := s.activation_gradient_rms)]
    top = max(logs, default=0.0)
    # A little below the smallest one, so that it still has a bar.
    bottom = min(min(logs, default=0.0), top - _DECADES) - 0.05 * _DECADES
    optional: list[tuple[str, Callable[[LayerSignal], Cell]]] = [
        ("grad/weight", lambda s: _short(s.gradient_to_weight)),
        ("zeros", lambda s: _percent(s.zero_fraction)),
        ("dead", lambda s: _ill(s.dead_fraction)),
        ("saturated", lambda s: _ill(s.saturated_fraction)),
        ("γ/σ", lambda s: _short(s.norm_gain)),
        ("NaN/Inf", lambda s: _count(s.nonfinite + s.nonfinite_gradient)),
    ]
    used = [(n, f) for n, f in optional if any(_tells(f(s)) for s in result.layers)]
    rows = [
        (
            f"{_MARKS[s.role]}{s.name}",
            _short(s.activation_rms),
            _short(s.activation_gradient_rms),
            Bar(_share(s.activation_gradient_rms, bottom, top)),
            *(f(s) for _, f in used),
        )
        for s in shown
    ]
    columns = (
        Column("layer", numeric=False),
        Column("activation"),
        Column("∂ℓ/∂act", rank=0),
        Column("", numeric=False),
        *(Column(n) for n, _ in used),
    )
    bars = f"bars: log scale from {10**bottom:.0e} to {10**top:.0e}"
    caption = "RMS of an entry; the gain is that of the norm"
    if any(s.role == "branch" for s in result.layers):
        caption += "; └ bypassed by a residual connection, + sum of a block"
    if any(s.norm_gain is not None for s in result.layers):
        caption += "; γ/σ the gradient gain of a normalisation"
    if hidden:
        caption += f"; the {len(shown)} that stand out most of {len(result.layers)} layers"
    return Table("Layers in execution order", columns, rows, caption, bars)


def _map(result: GradientsResult) -> list[Block]:
    """Layer by quantity: each quantity in decades from its median over the layers."""
    shown, _ = _fold(result)
    quantities: list[tuple[str, Callable[[LayerSignal], float | None]]] = [
        ("activation", lambda s: s.activation_rms),
        ("∂ℓ/∂act", lambda s: s.activation_gradient_rms),
        ("∂ℓ/∂weight", lambda s: s.weight_gradient_rms),
        ("grad/weight", lambda s: s.gradient_to_weight),
    ]
    used = [(n, f) for n, f in quantities if any(f(s) for s in shown)]
    if not used or len(shown) < 2:
        return []
    middles = [median(v for s in shown if (v := f(s))) for _, f in used]

    def decades(value: float | None, middle: float) -> float:
        return math.log10(value / middle) if value else float("nan")

    return [
        HeatMap(
            "Layers and what passes through them",
            "",
            "",
            "decades from the median",
            [float(i) for i in range(len(used))],
            [float(j) for j in range(len(shown))],
            [[decades(f(s), m) for (_, f), m in zip(used, middles, strict=True)] for s in shown],
            x_names=[name for name, _ in used],
            y_names=[s.name for s in shown],
            texts=[[f"{s.name}, {name}: {number(f(s), 3)}" for name, f in used] for s in shown],
            tabled=True,
        )
    ]


def _fold(result: GradientsResult) -> tuple[list[LayerSignal], int]:
    """The layers to show, in execution order, and how many are left out."""
    layers = result.layers
    count = result.rows or (len(layers) if len(layers) <= 2 * _FOLDED else _FOLDED)
    if count >= len(layers):
        return layers, 0
    logs = sorted(math.log10(g) for s in layers if (g := s.activation_gradient_rms))
    middle = logs[len(logs) // 2] if logs else 0.0

    def badness(layer: LayerSignal) -> tuple[int, float]:
        gradient = layer.activation_gradient_rms
        far = abs(math.log10(gradient) - middle) if gradient else 0.0
        ill = max(layer.dead_fraction or 0.0, layer.saturated_fraction or 0.0)
        return layer.nonfinite + layer.nonfinite_gradient, far + ill

    order = sorted(range(len(layers)), key=lambda i: badness(layers[i]), reverse=True)
    return [layers[i] for i in sorted(order[:count])], len(layers) - count


def _share(value: float | None, bottom: float, top: float) -> float:
    if not value:
        return 0.0
    return min(1.0, max(0.0, (math.log10(value) - bottom) / (top - bottom)))


def _short(value: float | None) -> str | None:
    return None if value is None else number(value, 3)


def _percent(value: float | None) -> str | None:
    if value is None:
        return None
    if 0 < value < _LEAST:
        return f"< {100 * _LEAST:.1f} %"
    return "0" if value == 0 else f"{100 * value:.1f} %"


def _ill(share: float | None) -> Cell:
    """A share of units that learn nothing; half of them are many."""
    told = _percent(share)
    return told if told is None or share is None or share < _MANY else State(told, "bad")


def _count(values: int) -> Cell:
    return State(f"{values:,}", "bad") if values else None


def _tells(cell: Cell) -> bool:
    return cell is not None and cell != "0"


def _time(trends: list[TimeTrend]) -> list[Block]:
    unrolled = any(t.lag for t in trends)
    rows: list[tuple[Cell, ...]] = []
    for t in trends:
        known = [g for g in t.gradient if g is not None]
        row: tuple[Cell, ...] = (
            t.name,
            t.kind,
            t.steps,
            _short(known[0] if known else None),
            _short(known[-1] if known else None),
            _short(t.gain_per_step),
        )
        rows.append((*row, _short(t.decay), _short(t.memory_horizon)) if unrolled else row)
    columns = [Column("layer", numeric=False), Column("kind", numeric=False)]
    columns += [Column(n) for n in ("steps", "first", "last", "gain")]
    caption = "first, last: ‖∂ℓ/∂h‖ at these steps; gain: its factor for each step further back"
    if unrolled:
        columns += [Column("decay"), Column("to 1/e")]
        caption += "; decay: factor of ‖∂h_T/∂h_t‖ for each step of lag; to 1/e: steps until it has fallen so far"
    blocks: list[Block] = [Table("Along the sequence", tuple(columns), rows, caption)]
    gates = [
        (t.name, name, _short(gate.mean), _percent(gate.saturated_fraction))
        for t in trends
        for name, gate in t.gates.items()
    ]
    if gates:
        names = (Column("layer", numeric=False), Column("gate", numeric=False))
        blocks.append(
            Table("Gates", (*names, Column("mean"), Column("saturated")), gates,
                  "saturated: σ' below 10 % of its largest")
        )  # fmt: skip
    return blocks


def _attention(result: GradientsResult) -> Table:
    rows = [
        (h.name, len(h.entropy), " ".join("—" if e is None else f"{e:.2f}" for e in h.entropy))
        for h in result.attention
    ]
    columns = (
        Column("layer", numeric=False),
        Column("heads"),
        Column("entropy by head", numeric=False),
    )
    return Table("Attention", columns, rows, "1: uniform over the keys in sight; 0: a single key")


def _initialisations(result: GradientsResult) -> Table:
    rows = [
        (
            s.name,
            s.seeds,
            _range(s.gain_per_layer),
            _range(s.chi),
            _range(s.depth_gain),
            _range(s.lambda_max),
            _range(s.loss),
        )
        for s in result.initialisations
    ]
    columns = (
        Column("weights", numeric=False),
        Column("seeds"),
        *(Column(n, numeric=False) for n in ("gain/layer", "χ", "depth gain", "λ_max", "loss")),
    )
    return Table("Initialisations, best first", columns, rows, "median and range over the seeds")


def _range(spread: Spread) -> str:
    if spread.median is None:
        return "—"
    if spread.lowest == spread.highest:
        return number(spread.median, 3)
    return f"{number(spread.median, 3)} ({number(spread.lowest, 2)} … {number(spread.highest, 2)})"
