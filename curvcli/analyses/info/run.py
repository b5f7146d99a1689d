"""`curvcli info`: what is in a checkpoint. Needs no model."""

import math

import torch

from curvcli.analyses.info.command import InfoOptions
from curvcli.analyses.info.findings import NONFINITE
from curvcli.analyses.info.result import InfoResult, TensorEntry
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import UsageError
from curvcli.loading.checkpoints.checkpoint import Checkpoint
from curvcli.loading.checkpoints.sources import TensorInfo

_BLOCK = 1 << 22
"""Bytes that are measured at a time."""
_MEASURED = ("float", "bfloat16", "int", "uint", "bool")


def run(subject: Subject, options: InfoOptions, journal: Journal) -> Answer[InfoResult]:
    """Answer `curvcli info`; see `InfoOptions`.

    Raises:
        CheckpointError: the file cannot be used.
    """
    checkpoint = subject.target.checkpoint
    if checkpoint is None:
        raise UsageError("no checkpoint is given", "name one: curvcli info weights.safetensors")
    values: dict[str, tuple[float | None, float | None, int]] = {}
    if not options.headers_only:
        for done, tensor in enumerate(checkpoint.tensors):
            journal.progress(Stage("tensors", done, len(checkpoint.tensors), tensor.name))
            values[tensor.name] = _measure(checkpoint, tensor)
        _ = subject.target.weights.sha256
    entries = [
        TensorEntry(
            t.name, list(t.shape), t.dtype, t.bytes, *values.get(t.name, (None, None, None))
        )
        for t in checkpoint.tensors
    ]
    for entry in entries:
        if entry.nonfinite:
            journal.find(
                NONFINITE,
                entry.name,
                f"{entry.name} contains {entry.nonfinite} NaN or Inf",
                value=float(entry.nonfinite),
            )
    kinds: dict[str, int] = {}
    for entry in entries:
        kinds[entry.dtype] = kinds.get(entry.dtype, 0) + 1
    return journal.answer(
        InfoResult(
            format=checkpoint.format,
            tensors=entries,
            parameters=sum(_count(e.shape) for e in entries if "float" in e.dtype),
            bytes=sum(e.bytes for e in entries),
            dtypes=kinds,
            nonfinite=None if options.headers_only else sum(e.nonfinite or 0 for e in entries),
            metadata=checkpoint.metadata,
        )
    )


def _measure(checkpoint: Checkpoint, info: TensorInfo) -> tuple[float | None, float | None, int]:
    """(norm of the finite entries, rms, non-finite count), block by block; nothing is known of types that hold bits."""
    if not info.dtype.startswith(_MEASURED) or not hasattr(torch, info.dtype):
        return None, None, 0
    norms, nonfinite, count = [], 0, 0
    for piece in checkpoint.pieces(info.name, _BLOCK):
        values = piece.double()
        finite = torch.isfinite(values)
        if not finite.all():
            values = values[finite]
        norms.append(float(torch.linalg.vector_norm(values)))
        nonfinite += piece.numel() - values.numel()
        count += piece.numel()
    norm = math.hypot(*norms)
    return norm, norm / max(1, count) ** 0.5, nonfinite


def _count(shape: list[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
