"""`curvcli info`: what is in a checkpoint. Needs no model."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.shared.analysis import Analysis
from curvcli.analyses.shared.context import Context, Stage
from curvcli.report.data import Block, Column, Facts, Number, Table


class TensorEntry(Struct, frozen=True):
    """One tensor of the checkpoint."""

    name: str
    shape: list[int]
    dtype: str
    bytes: int
    norm: Annotated[Number, Meta(description="2-norm of the finite entries; null if not read")]
    rms: Annotated[Number, Meta(description="norm / √entries")]
    nonfinite: Annotated[int | None, Meta(description="NaN and Inf entries; null if not read")]


class InfoResult(Struct, frozen=True):
    """The content of a checkpoint."""

    format: str
    tensors: list[TensorEntry]
    parameters: Annotated[int, Meta(description="entries of all floating-point tensors")]
    bytes: int
    dtypes: Annotated[dict[str, int], Meta(description="tensors of each dtype")]
    nonfinite: Annotated[int | None, Meta(description="NaN and Inf in all; null if not read")]
    metadata: dict[str, str]


def info(
    context: Context,
    *,
    headers_only: Annotated[bool, "Do not read the values: no norms, no look for NaN."] = False,
) -> InfoResult:
    """What is in a checkpoint: tensors, shapes, dtypes, norms, NaN and Inf.

    Needs no model. Safetensors are read one tensor at a time, so that a checkpoint larger than the
    memory can be inspected.

    Raises:
        CheckpointError: the file cannot be used.
    """
    from curvcli.errors import UsageError

    checkpoint = context.target.checkpoint
    if checkpoint is None:
        raise UsageError("no checkpoint is given", "name one: curvcli info weights.safetensors")
    values: dict[str, tuple[float | None, float | None, int]] = {}
    if not headers_only:
        for done, (name, tensor) in enumerate(checkpoint.items()):
            context.progress(Stage("tensors", done, len(checkpoint.tensors), name))
            values[name] = _measure(tensor)
        _ = context.target.checkpoint_sha256
    entries = [
        TensorEntry(
            t.name, list(t.shape), t.dtype, t.bytes, *values.get(t.name, (None, None, None))
        )
        for t in checkpoint.tensors
    ]
    for entry in entries:
        if entry.nonfinite:
            context.find(
                "info.nonfinite",
                "error",
                entry.name,
                f"{entry.name} contains {entry.nonfinite} NaN or Inf",
                value=float(entry.nonfinite),
                threshold=0.0,
            )
    kinds: dict[str, int] = {}
    for entry in entries:
        kinds[entry.dtype] = kinds.get(entry.dtype, 0) + 1
    return InfoResult(
        format=checkpoint.format,
        tensors=entries,
        parameters=sum(_count(e.shape) for e in entries if "float" in e.dtype),
        bytes=sum(e.bytes for e in entries),
        dtypes=kinds,
        nonfinite=None if headers_only else sum(e.nonfinite or 0 for e in entries),
        metadata=checkpoint.metadata,
    )


def _measure(tensor: "object") -> tuple[float | None, float | None, int]:
    """(norm of the finite entries, rms, non-finite count)."""
    import torch

    assert isinstance(tensor, torch.Tensor)
    if tensor.is_quantized or tensor.is_complex():
        return None, None, 0
    values = tensor.to(torch.float64) if tensor.is_floating_point() else tensor.double()
    finite = torch.isfinite(values)
    norm = float(torch.linalg.vector_norm(torch.where(finite, values, 0.0)))
    return norm, norm / max(1, values.numel()) ** 0.5, int((~finite).sum())


def _count(shape: list[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


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


ANALYSIS = Analysis(info, view, needs="checkpoint")
