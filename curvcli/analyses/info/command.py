"""The options of `curvcli info`."""

from typing import Annotated

from msgspec import Struct

from curvcli.analyses.info.headline import headline
from curvcli.analyses.info.result import InfoResult
from curvcli.analyses.info.view import view
from curvcli.analyses.shared.question import Question


class InfoOptions(Struct, frozen=True, kw_only=True):
    """What is in a checkpoint: its tensors with shapes, types and norms, and any NaN or Inf.

    Needs no model and no data. Tensors of a safetensors file are read one at a time, so that it may be larger than the
    memory.
    """

    headers_only: Annotated[bool, "Do not read the values: no norms, no look for NaN."] = False


QUESTION = Question("info", InfoOptions, InfoResult, view, headline, needs="checkpoint")
