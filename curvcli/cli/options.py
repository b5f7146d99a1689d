"""Command-line options, derived from the fields of `TargetSpec` and the signatures of the analyses."""

import inspect
import tomllib
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from curvcli.analyses.shared.question import Option, Question
from curvcli.cli.completion import completer
from curvcli.errors import UsageError
from curvcli.loading.spec import option_fields
from curvcli.training.afterwards import LOGGED

# Settings that `key=value` flags fill, and the flag's name in the singular.
_ASSIGNED = {"model_args": "--model-arg", "loss_args": "--loss-arg"}
_FOR_CHECKPOINT = {"unsafe_pickle", "trust_remote_code"}
_FOR_NOTHING = {"device"}
_SHORT = {"output": "-o", "quiet": "-q", "verbose": "-v"}

_CHECKPOINT = "File of weights, in place of the target file's."
_PROJECT = "Trust [tool.curvcli] of pyproject.toml here, also where it names code; or leave it out."
_RANKS = (
    "Share the data among so many processes on this machine; of several machines, use torchrun."
)

FORMATS = ("table", "json", "markdown", "html")
PICTURES = ("png", "svg", "pdf")
SHEETS = ("csv", "parquet")
ARRAYS = ("npz",)
CASE_FORMATS = ("junit", "github", "gitlab", "sarif")
OUTPUT_OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "format": (
        str,
        None,
        "How the answer is written; default: a table, or what -o's suffix says.",
    ),
    "output": (
        str,
        None,
        "Write the answer to this file: .json, .md, .html; the main table: .csv, .parquet; charts: .png, .svg, .pdf; "
        "the grid of a landscape: .npz.",
    ),
    "static": (bool, False, "An HTML page without scripts, for mail: drawings that do not zoom."),
    "open": (
        bool,
        False,
        "Show the answer as a page in the browser, in a file of its own without -o.",
    ),
    "strict": (bool, False, "Exit with 1 when there is a warning or an error among the findings."),
    "quiet": (bool, False, "No progress and no notes on stderr."),
    "verbose": (bool, False, "Show tracebacks and warnings."),
}

LOG = (
    "Also write the figures to a tracker: tensorboard:DIR, wandb:PROJECT, mlflow:EXPERIMENT, trackio:PROJECT, "
    "csv:FILE, jsonl:FILE."
)

WATCH = "Follow the directory: look at new checkpoints as they come, until Ctrl-C."


def plain_type(kind: Any) -> Any:
    """The type a flag takes: without None and without constraints (those are checked later)."""
    if get_origin(kind) is Annotated:
        return plain_type(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        rest = [a for a in get_args(kind) if a is not NoneType]
        return plain_type(rest[0])
    return kind


def signature(question: Question) -> inspect.Signature:
    """The parameters of an analysis' command: TARGET, its own options, the shared ones.

    Every flag defaults to None, so that what was not given can come from the target file.
    """
    parameters = []
    if question.needs != "nothing":
        parameters.append(_argument(question))
    for option in question.fields():
        shown = _shown(option.default)
        kind, flag = plain_type(option.kind), _assigned_flag(option)
        parameters.append(
            _option(option.name, list[str] if flag else kind, option.help, "Options", shown, flag)
        )
    for name, kind, default, text in option_fields():
        if not _applies(name, question):
            continue
        flag_kind = list[str] if name in _ASSIGNED else plain_type(kind)
        text = _CHECKPOINT if name == "checkpoint" else text  # noqa: PLW2901
        shown = _shown(default)
        parameters.append(
            _option(name, flag_kind, text, "Target options", shown, _ASSIGNED.get(name))
        )
    if question.needs != "nothing":
        parameters.append(_option("project", bool, _PROJECT, "Target options", None))
    if question.needs == "objective":
        parameters.append(_option("ranks", int, _RANKS, "Target options", None))
    for name, (kind, default, text) in OUTPUT_OPTIONS.items():
        kind = Literal[formats(question)] if name == "format" else kind  # noqa: PLW2901
        parameters.append(_option(name, kind, text, "Output options", None, default=default))
    if question.name in LOGGED:
        parameters.append(_option("log", str, LOG, "Output options", None))
    if question.targets == "series":
        parameters.append(_option("watch", bool, WATCH, "Output options", None, default=False))
    return inspect.Signature(parameters)


def formats(question: Question) -> tuple[str, ...]:
    """The formats that an analysis' answer can be written in."""
    found: tuple[str, ...] = FORMATS
    if question.cases is not None:
        found += CASE_FORMATS
    return (*found, "ndjson") if question.targets == "series" else found


def split(
    question: Question, given: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The flags given, as (settings of the target, options of the analysis, output options)."""
    options: dict[str, Any] = {}
    for option in question.fields():
        value, flag = given.get(option.name), _assigned_flag(option)
        if value is not None and value != []:
            assigned = flag is not None and get_origin(plain_type(option.kind)) is dict
            options[option.name] = parse_assignments(value, str(flag)) if assigned else value
    output = {k: given.get(k) for k in (*OUTPUT_OPTIONS, "log", "watch")}
    settings: dict[str, Any] = {}
    own = {option.name for option in question.fields()}  # --shard of sharpness is another one
    for name, *_ in option_fields():
        value = given.get(name)
        if value is None or value == [] or name in own:
            continue
        key = name.replace("_", "-")
        settings[key] = parse_assignments(value, _ASSIGNED[name]) if name in _ASSIGNED else value
    return settings, options, output


def command(question: Question, execute: Callable[..., None]) -> Callable[..., None]:
    """A function that Typer turns into the command."""

    def run(**given: Any) -> None:
        execute(given)

    run.__signature__ = signature(question)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in signature(question).parameters.values()}
    run.__doc__ = question.description
    return run


def _assigned_flag(option: Option) -> str | None:
    """``--threshold`` for an option ``thresholds`` that is a dict, filled by ``name=value``, or a list of tables."""
    kind = plain_type(option.kind)
    tables = get_origin(kind) is list and plain_type(get_args(kind)[0]) is not get_args(kind)[0]
    if get_origin(kind) is not dict and not tables:
        return None
    return "--" + option.name.removesuffix("s").replace("_", "-")


def _applies(name: str, question: Question) -> bool:
    if question.needs == "nothing":
        return name in _FOR_NOTHING
    if name == "checkpoint":  # of several, each is a target of its own
        return question.targets == "one" and bool(question.named)
    if name == "shard":
        # Where a question has another one of that name, a target file can divide.
        return question.divides is not None and all(o.name != name for o in question.fields())
    return question.needs == "objective" or name in _FOR_CHECKPOINT


def _metavar(kind: Any) -> str | None:
    """What stands after the flag in --help; choices and switches speak for themselves."""
    if get_origin(kind) is Literal or kind is bool:
        return None
    return {int: "N", float: "X", str: "TEXT"}.get(kind, "TEXT")


def _shown(default: Any) -> str | None:
    """How a default is named in --help; what is off or empty by default goes without saying."""
    if default is None or default is False or default in ([], {}, ()):
        return None
    return f"{default:g}" if isinstance(default, float) else str(default)


def _argument(question: Question) -> inspect.Parameter:
    text = "Checkpoint, or a target file (.toml) naming checkpoint, model, data and loss."
    kind: Any = str | None
    metavar = "TARGET"
    if question.targets != "one":
        kind, metavar = list[str] | None, "TARGET..."
        text = (
            "Checkpoints, or target files (.toml); a checkpoint takes the settings of the target file "
            "before it."
        )
    if question.targets == "series":
        text += " A directory stands for the checkpoints in it, by the step numbers in their names."
    if question.needs == "checkpoint":
        text = "Checkpoint, or a target file (.toml) that names one."
    return inspect.Parameter(
        "target",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            kind,
            typer.Argument(
                help=text,
                show_default=False,
                metavar=metavar,
                autocompletion=completer("target"),
            ),
        ],
    )


def _option(
    name: str,
    kind: Any,
    text: str,
    panel: str,
    shown: str | None,
    flag: str | None = None,
    default: Any = None,
) -> inspect.Parameter:
    flag = flag or "--" + name.replace("_", "-")
    names = [flag, *([_SHORT[name]] if name in _SHORT else [])]
    if kind is bool and default is None:
        names = [f"{flag}/--no-{flag[2:]}"]
    # The default is part of the text: the flag itself defaults to "not given".
    help_text = f"{text}  [default: {shown}]" if shown else text
    option = typer.Option(
        *names,
        help=help_text,
        show_default=False,
        rich_help_panel=panel,
        metavar=_metavar(kind),
        autocompletion=completer(name),
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind if default is not None else kind | None, option],
    )


def parse_assignments(pairs: list[str], flag: str) -> dict[str, Any]:
    """``["depth=3", "act=relu"]`` -> ``{"depth": 3, "act": "relu"}``, values read as TOML where they are."""
    result: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"{flag} takes name=value, not {pair!r}", f"write {flag} depth=3")
        try:
            result[name] = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            result[name] = text
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{flag} {pair[:40]}…: {str(error)[:100]}", "give it a smaller value"
            ) from None
    return result
