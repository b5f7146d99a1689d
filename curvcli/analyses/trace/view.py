"""How the sums over a spectrum are shown."""

from curvcli.analyses.shared.rules import product_check
from curvcli.analyses.shared.spectrum.matrix_options import TITLES
from curvcli.analyses.trace.result import Estimate, TraceResult
from curvcli.report.data import BarGroup, Bars, Block, Column, Facts, Measured, Sentence, Table
from curvcli.report.numbers import number

# Rows of the table of tensors; the JSON holds all.
_SHOWN = 24


def _cell(estimate: Estimate) -> Measured | str:
    if estimate.standard_error is None:
        return f"{number(estimate.value)} ± unknown"
    return Measured(estimate.value, estimate.standard_error)


def view(result: TraceResult) -> list[Block]:
    """The sums, the diagonal by tensor, the split."""
    title = TITLES[result.matrix]
    how = {
        "whole": f"exact: all {result.parameters:,} eigenvalues by as many products",
        "gram": "exact: all eigenvalues from the Gram matrix of the rows",
        "probes": f"exact on {result.deflated} Krylov vectors, {result.probes} random vectors on the rest",
    }[result.method]
    blocks: list[Block] = [
        Facts(
            [
                ("trace", _cell(result.trace)),
                ("Frobenius norm", _cell(result.frobenius)),
                ("effective dimension", _cell(result.effective_dimension)),
                ("at damping", result.damping),
                ("participation ratio", _cell(result.participation_ratio)),
                ("mean eigenvalue", _cell(result.mean_eigenvalue)),
                ("parameters", result.parameters),
                ("method", how),
                ("product check", product_check(result.hvp_check)),
            ],
            f"{title[0].upper()}{title[1:]}: value ± standard error",
        ),
        Sentence(
            "participation ratio: (Σ λ)² / Σ λ², how many equal eigenvalues would have this sum and these squares; "
            "effective dimension: how many directions have a curvature above the damping."
        ),
    ]
    if result.split is not None:
        split = result.split
        blocks.append(
            Facts(
                [
                    ("trace of G", _cell(split.gauss_newton_trace)),
                    ("trace of R", _cell(split.residual_trace)),
                    ("Frobenius norm of R", _cell(split.residual_frobenius)),
                    ("share of R in ‖∇²L‖²", _cell(split.residual_share)),
                ],
                "∇²L = G + R: Gauss-Newton and residual",
            )
        )
    total = sum(abs(t.trace.value) for t in result.tensors)
    shown = sorted(result.tensors, key=lambda t: -abs(t.trace.value))[:_SHOWN]
    names = {t.name for t in shown}
    rows = [
        (t.name, t.parameters, _cell(t.trace), _cell(t.mean_diagonal),
         f"{t.trace.value / total:.1%}" if total else None)
        for t in result.tensors if t.name in names
    ]  # fmt: skip
    hidden = len(result.tensors) - len(rows)
    blocks.append(
        Table(
            "Diagonal by tensor",
            (
                Column("tensor", numeric=False),
                Column("parameters", rank=2),
                Column("trace ± s.e.", rank=0),
                Column("mean ± s.e."),
                Column("share", rank=0),
            ),
            rows,
            f"{hidden} tensors with smaller traces are left out; the JSON holds all."
            if hidden
            else None,
        )
    )
    tensors = [t for t in result.tensors if t.name in names]
    if tensors:
        errors = [t.trace.standard_error or 0.0 for t in tensors]
        group = BarGroup("trace", [t.trace.value for t in tensors], errors)
        blocks.append(Bars("Trace by tensor", "trace", [t.name for t in tensors], [group]))
    return blocks
