"""What `curvcli init` answers."""

from typing import Annotated

from msgspec import Meta, Struct


class InitResult(Struct, frozen=True):
    """The target file, and how complete it is."""

    path: Annotated[str, Meta(description="the target file that was written")]
    format: str
    recognised: Annotated[str | None, Meta(description="what network it is, if that was found out")]
    settings: Annotated[dict[str, str], Meta(description="what was found out")]
    unknown: Annotated[list[str], Meta(description="settings that only you know")]
    text: Annotated[str, Meta(description="content of the target file")]
