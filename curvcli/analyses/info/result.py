"""What `curvcli info` answers."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.report.data import Number


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
