"""The options of `curvcli info`."""

from typing import Annotated

from msgspec import Struct

from curvcli.analyses.info.headline import headline
from curvcli.analyses.info.result import InfoResult
from curvcli.analyses.info.view import view
from curvcli.analyses.shared.question import Question


class InfoOptions(Struct, frozen=True, kw_only=True):
    """What is in a checkpoint: tensors, shapes, dtypes, norms, NaN and Inf.

    Needs no model. Safetensors are read one tensor at a time, so that a checkpoint larger than the
    memory can be inspected.
    """

    headers_only: Annotated[bool, "Do not read the values: no norms, no look for NaN."] = False


QUESTION = Question("info", InfoOptions, InfoResult, view, headline, needs="checkpoint")
