"""How `curvcli backprop` is shown."""

from curvcli.analyses.backprop.result import BackpropResult
from curvcli.report.data import BarGroup, Bars, Block, Cell, Column, Facts, State, Table, yes


def view(result: BackpropResult) -> list[Block]:
    """Both checks, one row for each parameter."""
    slopes = {s.parameter: s for s in result.slopes}
    identities = {i.parameter: i for i in result.identities}
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            identities[name].kind if name in identities else "",
            identities[name].error if name in identities else None,
            slope.error,
            yes(slope.passed and (name not in identities or identities[name].passed))
            if slope.decided
            else State("undecided", "attention"),
        )
        for name, slope in slopes.items()
    ]
    table = Table(
        "Gradient checks in float64",
        (
            Column("parameter", numeric=False),
            Column("layer", numeric=False, rank=2),
            Column("δᵀx error"),
            Column("difference error"),
            Column("passed", numeric=False, rank=0),
        ),
        rows,
        "δᵀx error: off the gradient of the layer's output times its input. difference error: off finite differences "
        "of the loss. Both relative.",
    )
    facts = Facts([("samples", result.samples), ("parameters", result.parameters)])
    nothing = float("nan")
    hand = [identities[name].error if name in identities else nothing for name in slopes]
    groups = [BarGroup("finite differences", [slope.error for slope in slopes.values()])]
    if identities:
        groups.insert(0, BarGroup("δᵀx by hand", hand))
    errors = Bars(
        "Errors of the gradient", "relative error", list(slopes), groups, log=True, tabled=True
    )
    return [facts, table, errors]
