"""curvcli: how the loss surface of a neural network bends, and how signals travel through it.

From Python::

    import curvcli

    run = curvcli.load("sample_models/digits_mlp.toml", dtype="float64")
    result = curvcli.analyse("hessian", run, top=5)
    print(result.top[0].value, "±", result.top[0].residual)

or with objects of your own::

    objective = curvcli.Objective(model, [curvcli.Batch((x, y), len(x))], terms)
    result = curvcli.analyse("hessian", curvcli.Context(objective=objective))
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from curvcli.analyses.shared.context import Context
    from curvcli.objective.batch import Batch
    from curvcli.objective.objective import Objective

__all__ = ["Batch", "Context", "Objective", "__version__", "analyse", "load"]


def load(path: str | None = None, **settings: Any) -> "Context":
    """The target that a checkpoint or target file names, ready for `analyse`.

    Args:
        path: a checkpoint or a ``.toml`` target file; None where the model brings its weights.
        settings: any setting of the command line by its long name with underscores (``model=``,
            ``batch_size=``, ``dtype=``).

    Raises:
        CurvError: a setting is wrong. Files are opened later, by the analysis.
    """
    from curvcli.analyses.registry import NAMES
    from curvcli.analyses.shared.context import Context, resolve_target

    flags = {name.replace("_", "-"): value for name, value in settings.items()}
    spec, _ = resolve_target(path, flags, tuple(NAMES))
    return Context(spec)


def analyse(name: str, run: "Context", **options: Any) -> Any:
    """Run one analysis; its result is the struct that the JSON schema of ``name`` describes.

    Args:
        name: the command, e.g. ``"hessian"``.
        run: from `load`, or a `Context` around an `Objective`. Findings and notes are added to it.
        options: the command's own options, with underscores.

    Raises:
        CurvError: wrong input; see `curvcli.errors`.
    """
    from curvcli.analyses.registry import get

    analysis = get(name)
    return analysis.run(run, **analysis.validate(options, f"analyse({name!r})"))


def __getattr__(name: str) -> Any:
    # torch is imported when an object that needs it is first asked for.
    if name in ("Batch", "Objective"):
        from curvcli.objective import objective

        return getattr(objective, name)
    if name == "Context":
        from curvcli.analyses.shared.context import Context

        return Context
    raise AttributeError(f"module 'curvcli' has no attribute {name!r}")
