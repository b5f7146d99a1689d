"""How `curvcli step` is shown."""

from curvcli.analyses.shared.rules import product_check
from curvcli.analyses.step.result import StepResult
from curvcli.report.data import BarGroup, Bars, Block, Column, Facts, Table, yes

# Ends of a run by what a reader calls them.
_HOW = {"max_matvecs": "stopped by --max-matvecs"}


def view(result: StepResult) -> list[Block]:
    """One row for each method."""
    facts = Facts(
        [
            ("loss", result.loss),
            ("gradient norm", result.gradient_norm),
            ("lowest curvature", result.negative_curvature),
            *([("saved", result.saved)] if result.saved is not None else []),
            ("product check", product_check(result.hvp_check)),
        ]
    )
    table = Table(
        "One step by each method",
        (
            Column("method", numeric=False),
            Column("‖Δθ‖"),
            Column("predicted"),
            Column("true", rank=0),
            Column("products"),
            Column("to saddle", numeric=False, rank=2),
            Column("how", numeric=False, rank=3, folds=True),
        ),
        [
            (
                m.name,
                m.norm,
                m.predicted_change,
                m.true_change,
                m.matvecs,
                yes(m.heads_for_saddle, good=False),
                _HOW.get(m.status or "", m.status),
            )
            for m in result.methods
        ],
        "predicted and true: change of the loss. to saddle: climbs along negative curvature.",
    )
    if not result.methods:
        return [facts, table]
    nothing = float("nan")
    changes = Bars(
        "Change of the loss by one step",
        "change of the loss",
        [m.name for m in result.methods],
        [
            BarGroup(name, [nothing if v is None else v for v in values])
            for name, values in (
                ("predicted", [m.predicted_change for m in result.methods]),
                ("true", [m.true_change for m in result.methods]),
            )
        ],
    )
    return [facts, table, changes]
