"""How the answer of `curvcli jacobian` is shown."""

import math

from curvcli.analyses.jacobian.result import JacobianResult, Quantiles, TangentKernel, TimeJacobian
from curvcli.report.data import (
    Block,
    Cell,
    Chart,
    Column,
    Facts,
    Measured,
    Sentence,
    Series,
    Table,
)
from curvcli.report.numbers import number

# What is shown of a distribution, and which leaves first where there is no room.
_QUANTILES = (
    ("min", 1), ("25 %", 3), ("median", 0), ("75 %", 3), ("max", 1), ("mean", 2), ("error", 2),
)  # fmt: skip

# Rows of a table of singular values or eigenvalues.
_ROWS = 20

# Relative errors up to this are rounding, in single precision.
_ROUNDING = 1e-5


def view(result: JacobianResult) -> list[Block]:
    """Size and norms, the samples that stand out, then layers, time and kernel where asked for."""
    blocks: list[Block] = [_facts(result)]
    if result.samples:
        blocks += [_distribution(result), *_histogram(result), _worst(result)]
    blocks += [
        Table(
            f"Jacobian of sample {m.index}",
            tuple(Column(f"∂/∂x{j}") for j in range(len(m.entries[0]))),
            [tuple(row) for row in m.entries],
        )
        for m in result.matrices
    ]
    if result.ntk is not None:
        blocks += _kernel(result.ntk)
    if result.layers:
        blocks += _layers(result)
    for layer in result.time:
        blocks += _time(layer)
    return blocks


def _facts(result: JacobianResult) -> Facts:
    how = {
        "dense": "formed: every singular value",
        "golub-kahan": "Golub-Kahan-Lanczos: leading singular values",
        "gram": "kernel formed: every eigenvalue",
    }[result.method]
    samples = sum(s.samples for s in result.samples) or (result.ntk.samples if result.ntk else 0)
    return Facts(
        [
            ("with respect to", result.wrt),
            ("of", result.of),
            ("matrix", f"{result.outputs:,} × {result.inputs:,}"),
            (
                "samples",
                f"{samples:,}" + (", coupled: one matrix a batch" if result.coupled else ""),
            ),
            ("method", how),
            ("status", result.status.replace("_", " ")),
        ]
    )


def _distribution(result: JacobianResult) -> Table:
    def row(name: str, q: Quantiles | None) -> tuple[Cell, ...]:
        if q is None:
            return (name, *(None,) * 7)
        return (
            name, q.minimum, q.lower_quartile, q.median, q.upper_quartile, q.maximum, q.mean, q.error,
        )  # fmt: skip

    return Table(
        "Over the samples",
        (
            Column("", numeric=False),
            *(Column(name, rank=rank) for name, rank in _QUANTILES),
        ),
        [
            row("‖J‖_F", result.frobenius),
            row("‖J‖₂", result.spectral),
            row("condition", result.condition),
            row("effective rank", result.effective_rank),
            row("stable rank", result.stable_rank),
        ],
        "‖J‖₂: the most that a small change grows; ‖J‖_F: over all directions together; condition: largest over "
        "smallest factor; ranks: how many directions count. error: largest standard error (‖J‖_F; 0: exact) or "
        "residual (‖J‖₂). —: not known, or no finite figure.",
    )


def _histogram(result: JacobianResult) -> list[Block]:
    """How the samples' spectral norms are spread; the bins by Sturges' rule (1926)."""
    norms = sorted(s.spectral for s in result.samples if s.spectral is not None)
    if len(norms) < 4 or norms[0] == norms[-1]:
        return []
    count = 1 + math.ceil(math.log2(len(norms)))
    width = (norms[-1] - norms[0]) / count
    filled = [0] * count
    for norm in norms:
        filled[min(count - 1, int((norm - norms[0]) / width))] += 1
    places = [norms[0] + (i + 0.5) * width for i in range(count)]
    bars = Series("samples", places, [float(n) for n in filled], mark="bars")
    return [Chart("Spectral norms over the samples", "‖J‖₂", [bars], y_label="samples")]


# Singular values of a sample that fit a line of 80 characters.
_SHOWN = 3


def _worst(result: JacobianResult) -> Table:
    by_index = {s.index: s for s in result.samples}
    asked = max((len(s.singular_values) for s in result.samples), default=0)
    count = min(asked, _SHOWN)
    return Table(
        "Largest spectral norms",
        (
            Column("sample"),
            Column("‖J‖_F"),
            *(Column(f"σ{i + 1} ± residual") for i in range(count)),
            Column("condition"),
        ),
        [
            (
                s.index,
                _norm(s.frobenius, s.frobenius_standard_error),
                *(Measured(v.value, v.residual) for v in s.singular_values[:count]),
                f"> {number(s.condition_at_least, 2)}" if s.condition_at_least else s.condition,
            )
            for s in (by_index[i] for i in result.worst)
        ],
        "Some singular value lies within each σ ± residual."
        + (" The JSON holds all." if asked > count else ""),
    )


def _layers(result: JacobianResult) -> list[Block]:
    table = Table(
        "Layer by layer",
        (
            Column("layer", numeric=False),
            Column("m × n", rank=2),
            Column("‖J‖₂", rank=0),
            Column("χ"),
            Column("condition"),
            Column("iso", numeric=False),
            Column("product"),
        ),
        [
            (
                layer.name,
                f"{layer.outputs}×{layer.inputs}",
                Measured(layer.spectral, layer.spectral_residual),
                layer.chi,
                layer.condition,
                layer.isometry,
                layer.running_spectral,
            )
            for layer in result.layers
        ],
        "χ = ‖J‖_F²/n: mean squared stretch of a random direction. product: ‖J_l ⋯ J_1‖₂ as measured.",
    )
    depths = [float(layer.depth) for layer in result.layers]
    nothing = float("nan")
    chi = Chart(
        "χ by depth",
        "depth",
        [
            Series(name, depths, [nothing if v is None else v for v in values])
            for name, values in (
                ("χ of the layer", [layer.chi for layer in result.layers]),
                ("χ up to the layer", [layer.running_chi for layer in result.layers]),
            )
        ],
        y_label="χ",
        log_y=True,
    )
    path = result.path
    assert path is not None
    if path.isometry:
        flag = Sentence("Dynamical isometry: every singular value is within 10 % of 1.", "good")
    elif path.isometry is None:
        flag = Sentence("Dynamical isometry: not decided by the leading singular values.")
    else:
        flag = Sentence("No dynamical isometry: singular values lie more than 10 % from 1.")
    return [
        table,
        *([chi] if len(depths) > 1 else []),
        Sentence(
            f"Over {path.samples} samples ‖J‖₂ = {number(path.spectral)}; the bound by the layers' norms is "
            f"{number(path.bound)}, {number(path.looseness, 3)} times as large."
        ),
        flag,
    ]


def _time(layer: TimeJacobian) -> list[Block]:
    spectral = layer.spectral or [None] * len(layer.lags)
    table = Table(
        f"Through time: {layer.name} ({layer.kind}, {layer.steps} steps, state {layer.state})",
        (Column("lag"), Column("‖∂s_T/∂s_t‖₂"), Column("‖∂s_T/∂s_t‖_F")),
        list(zip(layer.lags, spectral, layer.frobenius, strict=True)),
    )
    exponent = Measured(layer.lyapunov, layer.lyapunov_error)
    rows: list[tuple[str, Cell]] = [("largest Lyapunov exponent", exponent)]
    if layer.memory_horizon is not None:
        sure = layer.lyapunov is None or -layer.lyapunov > 2 * (layer.lyapunov_error or 0.0)
        told = f"{number(layer.memory_horizon, 3)} steps" + ("" if sure else ", not certain")
        rows.append(("slowest direction to 1/e", told))
    blocks: list[Block] = [table, Facts(rows)]
    if layer.memory_horizon is not None:
        blocks.append(
            Sentence(
                "slowest direction: the part of the state that is forgotten last. `gradients` has another figure: how "
                "fast the output h as a whole is forgotten, over all directions."
            )
        )
    if len(layer.lags) > 1:
        lags = [float(lag) for lag in layer.lags]
        nothing = float("nan")
        blocks.append(
            Chart(
                f"Memory of {layer.name}",
                "lag",
                [
                    Series(
                        "‖∂s_T/∂s_t‖_F",
                        lags,
                        [nothing if v is None else v for v in layer.frobenius],
                    ),
                ],
                y_label="‖∂s_T/∂s_t‖_F",
                log_y=True,
            )
        )
    if layer.lyapunov is not None and layer.lyapunov_error is not None:
        if layer.lyapunov > 2 * layer.lyapunov_error and layer.lyapunov > 0:
            text, tone = "Disturbances of the state grow: chaotic, or diverging.", "bad"
        elif layer.lyapunov < -2 * layer.lyapunov_error:
            text, tone = "Disturbances of the state fade.", "plain"
        else:
            text, tone = "Disturbances of the state neither grow nor fade clearly.", "plain"
        blocks.append(Sentence(text, "bad" if tone == "bad" else "plain"))
    return blocks


def _kernel(ntk: TangentKernel) -> list[Block]:
    facts = Facts(
        [
            ("samples × outputs", f"{ntk.samples} × {ntk.outputs}"),
            ("parameters", ntk.parameters),
            ("trace", Measured(ntk.trace, ntk.trace_standard_error)),
            ("rank", ntk.rank),
            ("condition", ntk.condition),
        ]
    )
    columns = [Column("#"), Column("λ ± error")]
    if ntk.gauss_newton is not None:
        columns.append(Column("Gauss-Newton of the loss"))
    rows: list[tuple[Cell, ...]] = []
    for i, pair in enumerate(ntk.eigenvalues[:_ROWS]):
        row: tuple[Cell, ...] = (i + 1, Measured(pair.value, pair.residual))
        if ntk.gauss_newton is not None:
            other = ntk.gauss_newton[i]
            row = (*row, Measured(other.value, other.residual))
        rows.append(row)
    more = len(ntk.eigenvalues) - len(rows)
    caption = "Eigenvalues of K = JJᵀ are the non-zero ones of the Gauss-Newton matrix JᵀJ."
    table = Table(
        "Neural tangent kernel",
        tuple(columns),
        rows,
        caption + (f" {more} smaller ones are in the JSON." if more > 0 else ""),
    )
    return [table, facts]


def _norm(value: float | None, error: float | None) -> Measured | float | None:
    """A norm, with its error where that is more than rounding."""
    rounding = value is None or error is None or error <= _ROUNDING * value
    return value if rounding else Measured(value, error)
