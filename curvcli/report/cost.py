"""What an answer took."""

from typing import Annotated

from msgspec import Meta, Struct


class ProcessesInfo(Struct, frozen=True):
    """What the first of several processes exchanged with the others."""

    count: int
    messages: int
    sent: Annotated[int, Meta(description="bytes")]


class CostInfo(Struct, frozen=True):
    """What the answer took."""

    matvecs: Annotated[int, Meta(description="products over all batches")]
    gradients: Annotated[int, Meta(description="gradients over all batches")]
    seconds: float
    peak_memory: Annotated[
        int | None, Meta(description="bytes: allocated on the device, or resident")
    ]
    processes: Annotated[
        ProcessesInfo | None, Meta(description="null where one process did it alone")
    ] = None
