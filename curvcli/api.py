"""The questions from Python, with the types of their answers."""

from typing import TYPE_CHECKING, Any, Literal, overload

from curvcli.analyses.registry import NAMES, get
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.settings import resolve_target
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import UsageError, did_you_mean
from curvcli.loading.spec import FIELDS

if TYPE_CHECKING:
    from curvcli.analyses.backprop.result import BackpropResult
    from curvcli.analyses.check.result import CheckResult
    from curvcli.analyses.compare.result import CompareResult
    from curvcli.analyses.density.result import DensityResult
    from curvcli.analyses.doctor.result import DoctorResult
    from curvcli.analyses.gradients.result import GradientsResult
    from curvcli.analyses.hessian.result import HessianResult
    from curvcli.analyses.info.result import InfoResult
    from curvcli.analyses.init.result import InitResult
    from curvcli.analyses.jacobian.result import JacobianResult
    from curvcli.analyses.landscape.result import LandscapeResult
    from curvcli.analyses.lr.result import LrResult
    from curvcli.analyses.report.result import ReportResult
    from curvcli.analyses.saddle.result import SaddleResult
    from curvcli.analyses.sharpness.result import SharpnessResult
    from curvcli.analyses.step.result import StepResult
    from curvcli.analyses.taylor.result import TaylorResult
    from curvcli.analyses.trace.result import TraceResult
    from curvcli.analyses.track.result import TrackResult


@overload
def analyse(
    name: Literal["hessian"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[HessianResult]": ...
@overload
def analyse(
    name: Literal["density"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[DensityResult]": ...
@overload
def analyse(
    name: Literal["trace"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[TraceResult]": ...
@overload
def analyse(
    name: Literal["saddle"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[SaddleResult]": ...
@overload
def analyse(
    name: Literal["taylor"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[TaylorResult]": ...
@overload
def analyse(
    name: Literal["backprop"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[BackpropResult]": ...
@overload
def analyse(
    name: Literal["step"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[StepResult]": ...
@overload
def analyse(
    name: Literal["landscape"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[LandscapeResult]": ...
@overload
def analyse(
    name: Literal["sharpness"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[SharpnessResult]": ...
@overload
def analyse(
    name: Literal["lr"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[LrResult]": ...
@overload
def analyse(
    name: Literal["info"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[InfoResult]": ...
@overload
def analyse(
    name: Literal["init"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[InitResult]": ...
@overload
def analyse(
    name: Literal["gradients"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[GradientsResult]": ...
@overload
def analyse(
    name: Literal["jacobian"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[JacobianResult]": ...
@overload
def analyse(
    name: Literal["doctor"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[DoctorResult]": ...
@overload
def analyse(
    name: Literal["compare"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[CompareResult]": ...
@overload
def analyse(
    name: Literal["track"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[TrackResult]": ...
@overload
def analyse(
    name: Literal["check"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[CheckResult]": ...
@overload
def analyse(
    name: Literal["report"], subject: Subject, journal: Journal | None = None, /, **options: Any
) -> "Answer[ReportResult]": ...
@overload
def analyse(
    name: str, subject: Subject, journal: Journal | None = None, /, **options: Any
) -> Answer[Any]: ...


def analyse(
    name: str, subject: Subject, journal: Journal | None = None, /, **options: Any
) -> Answer[Any]:
    """Ask a question of a target.

    Args:
        name: the command, e.g. ``"hessian"``.
        subject: from `load`, or a `Subject` around an `Objective`.
        journal: told of progress, and asked whether to end early.
        options: the command's own options, with underscores.

    Returns:
        The result, a struct that ``curvcli schema NAME`` describes, with findings and notes.

    Raises:
        CurvError: wrong input; see `curvcli.errors`.
    """
    return get(name).ask(subject, options, journal or Journal(), f"analyse({name!r})")


def load(path: str | None = None, *, project: bool | None = None, **settings: Any) -> Subject:
    """The target that a checkpoint or target file names, ready for `analyse`.

    Args:
        path: a checkpoint or a ``.toml`` target file; None where the model brings its weights.
        project: whether ``[tool.curvcli]`` of the working directory's pyproject is trusted, as by ``--project``.
        settings: any setting of the command line by its long name with underscores (``model=``,
            ``batch_size=``, ``loss_arg={"label_smoothing": 0.1}``).

    Raises:
        CurvError: a setting is wrong. Files are opened later, by the question that needs them.
    """
    # The command line takes one argument at a time, and target files a table of them.
    for one in ("model_arg", "loss_arg"):
        if one in settings:
            settings[f"{one}s"] = settings.pop(one)
    flags = {name.replace("_", "-"): value for name, value in settings.items()}
    unknown = [name for name in flags if name not in FIELDS]
    if unknown:
        raise UsageError(
            f"there is no setting {unknown[0]!r}.{did_you_mean(unknown[0], FIELDS)}",
            "'curvcli hessian --help' lists them",
        )
    spec, tables = resolve_target(path, flags, NAMES, project)
    return Subject(spec, tables=tables)
