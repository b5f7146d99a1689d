"""The options of `curvcli init`."""

from typing import Annotated

from msgspec import Struct

from curvcli.analyses.init.headline import headline
from curvcli.analyses.init.result import InitResult
from curvcli.analyses.init.view import view
from curvcli.analyses.shared.question import Question


class InitOptions(Struct, frozen=True, kw_only=True):
    """Write a target file: where the weights, the network, the data and the loss are.

    What cannot be found out is left in it as a comment to fill in. Plain MLPs and CNNs are recognised by the names and
    shapes of their weights (model = "auto"); for any other network give --model. With model, data and loss known, the
    network is run once, and you see its loss and accuracy: those of chance say that weights or data are wrong.
    """

    to: Annotated[
        str | None, "The file to write; default: the checkpoint's name with .toml, here."
    ] = None
    force: Annotated[bool, "Write over a file that exists."] = False


QUESTION = Question("init", InitOptions, InitResult, view, headline, named=())
