"""The options of `curvcli init`."""

from typing import Annotated

from msgspec import Struct

from curvcli.analyses.init.headline import headline
from curvcli.analyses.init.result import InitResult
from curvcli.analyses.init.view import view
from curvcli.analyses.shared.question import Question


class InitOptions(Struct, frozen=True, kw_only=True):
    """Write a target file for a checkpoint, with what can be found out about it.

    What the checkpoint does not tell stands in it as a comment to fill in. Plain MLPs and CNNs are recognised by
    the names and shapes of their weights (model = "auto"), and the guess is tested by loading the weights strictly.
    Settings given here (--model, --data, --loss) are written into it, and once model, data and loss are known, one
    forward pass says how well the network does. The optimizer's settings come from the checkpoint's own state.
    """

    to: Annotated[
        str | None, "The file to write; default: the checkpoint's name with .toml, here."
    ] = None
    force: Annotated[bool, "Write over a file that exists."] = False


QUESTION = Question("init", InitOptions, InitResult, view, headline)
