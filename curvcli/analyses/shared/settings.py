"""From the words of a command line to settings: target files, flags, durations."""

from pathlib import Path
from typing import Any

from curvcli.errors import UsageError
from curvcli.loading.spec import (
    TargetFile,
    TargetSpec,
    make_spec,
    reaching,
    read_pyproject,
    read_target_file,
)


def resolve_target(
    argument: str | None,
    flags: dict[str, Any],
    commands: tuple[str, ...],
    project: bool | None = None,
) -> tuple[TargetSpec, dict[str, dict[str, Any]]]:
    """Merge pyproject, target file and flags into settings and the options of single analyses.

    Args:
        argument: a checkpoint, or a ``.toml`` target file, or None.
        flags: settings given on the command line; they override the target file, which overrides
            ``[tool.curvcli]`` of the working directory's pyproject.
        commands: names of analyses, whose tables a target file may have.
        project: whether the pyproject is trusted; None: as far as it names no code, or a target file is given.

    Raises:
        UsageError: a setting is wrong, or one of the pyproject needs trust.
    """
    targeted = argument is not None and Path(argument).suffix == ".toml"
    base = TargetFile({}, {}) if project is False else read_pyproject(commands)
    if not (project or targeted) and (named := reaching(base, _overridden(argument, flags))):
        raise UsageError(
            f"{base.path} names code to run, or files to write ({', '.join(named)}), and is not trusted",
            "if you trust this folder, pass --project, or name a target file; --no-project leaves it out",
        )
    layers, options = [base.settings], dict(base.options)
    if argument is not None and targeted:
        file = read_target_file(Path(argument), commands)
        layers.append(file.settings)
        for command, values in file.options.items():
            options[command] = {**options.get(command, {}), **values}
    elif argument is not None:
        if "checkpoint" in flags:
            raise UsageError(
                f"two checkpoints are given: {argument!r} and --checkpoint {flags['checkpoint']!r}",
                "--checkpoint goes with a target file, whose other settings are used",
            )
        layers.append({"checkpoint": argument})
    layers.append(flags)
    return make_spec(*layers), options


def _overridden(argument: str | None, flags: dict[str, Any]) -> set[str]:
    """Settings that the command line has the last word on."""
    found = {*flags, *(["checkpoint"] if argument is not None else [])}
    return found | {"loss", "objective"} if found & {"loss", "objective"} else found


def parse_seconds(text: str | None) -> float | None:
    """``90``, ``90s``, ``5m`` or ``1h`` in seconds."""
    if text is None:
        return None
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number = text[:-1] if text[-1:] in units else text
    try:
        seconds = float(number) * units.get(text[-1:], 1.0)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{text!r} is not a duration", "write it like 90s, 5m or 1h")
    return seconds
