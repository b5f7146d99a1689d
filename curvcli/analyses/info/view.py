"""How `curvcli info` is shown."""

from curvcli.analyses.info.result import InfoResult
from curvcli.report.data import Block, Column, Facts, Table


def view(result: InfoResult) -> list[Block]:
    """One row for each tensor."""
    facts = Facts(
        [
            ("format", result.format),
            ("tensors", len(result.tensors)),
            ("parameters", result.parameters),
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
            Column("shape"),
            Column("dtype"),
            Column("norm"),
            Column("rms"),
            Column("NaN/Inf"),
        ),
        [
            (e.name, "×".join(map(str, e.shape)) or "scalar", e.dtype, e.norm, e.rms, e.nonfinite)
            for e in result.tensors
        ],
    )
    return [facts, table]
