"""The options of `curvcli doctor`."""

from msgspec import Struct

from curvcli.analyses.doctor.headline import headline
from curvcli.analyses.doctor.result import DoctorResult
from curvcli.analyses.doctor.view import view
from curvcli.analyses.shared.question import Question


class DoctorOptions(Struct, frozen=True, kw_only=True):
    """Check this installation: versions, devices, and tests with known answers.

    Runs on the device that --device names, so that a GPU can be tested on its own.
    """


QUESTION = Question("doctor", DoctorOptions, DoctorResult, view, headline, needs="nothing")
