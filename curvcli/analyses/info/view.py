"""How `curvcli info` is shown."""

from curvcli.analyses.info.result import InfoResult
from curvcli.report.data import Block, Cell, Column, Facts, State, Table


def view(result: InfoResult) -> list[Block]:
    """One row for each tensor."""
    facts = Facts(
        [
            ("format", result.format),
            ("tensors", len(result.tensors)),
            ("numbers", result.parameters),
            ("bytes", result.bytes),
            ("dtypes", ", ".join(f"{k} × {v}" for k, v in result.dtypes.items())),
            ("NaN and Inf", result.nonfinite),
            *((f"metadata: {k}", v) for k, v in result.metadata.items()),
        ]
    )
    table = Table(
        "Tensors",
        (
            Column("name", numeric=False),
            Column("shape", rank=0),
            Column("dtype", rank=2),
            Column("norm"),
            Column("rms"),
            Column("NaN/Inf", rank=0),
        ),
        [
            (
                e.name,
                "×".join(map(str, e.shape)) or "scalar",
                e.dtype,
                e.norm,
                e.rms,
                _count(e.nonfinite),
            )
            for e in result.tensors
        ],
    )
    return [facts, table]


def _count(nonfinite: int | None) -> Cell:
    return State(f"{nonfinite:,}", "bad") if nonfinite else nonfinite
