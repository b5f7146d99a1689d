"""`curvcli info`: what is in a checkpoint. Needs no model."""

import torch

from curvcli.analyses.info.command import InfoOptions
from curvcli.analyses.info.findings import NONFINITE
from curvcli.analyses.info.result import InfoResult, TensorEntry
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import UsageError


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
        for done, (name, tensor) in enumerate(checkpoint.items()):
            journal.progress(Stage("tensors", done, len(checkpoint.tensors), name))
            values[name] = _measure(tensor)
        _ = subject.target.checkpoint_sha256
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


def _measure(tensor: object) -> tuple[float | None, float | None, int]:
    """(norm of the finite entries, rms, non-finite count)."""
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
