"""What the user asked to inspect, as strings: a target file, a pyproject table and flags, merged.

Every field of `TargetSpec` is at once a key of the target file and an option of the command line; its
description is the option's help. No torch here, so that ``--help`` stays fast.
"""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from curvcli.errors import UsageError, did_you_mean
from curvcli.files import check_regular
from curvcli.loading.wording import expected

Scalar = str | int | float | bool
_LARGEST = 2**63 - 1


class TargetSpec(
    msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, rename="kebab"
):
    """The settings shared by all analyses."""

    checkpoint: Annotated[str | None, Meta(description="File of weights.")] = None
    weights: Annotated[
        str | None,
        Meta(description="Which of several sets of weights: a key (ema, netG) or how names begin."),
    ] = None
    model: Annotated[
        str | None,
        Meta(
            description="Network: module:attribute, file.py:attribute, timm:NAME, torchvision:NAME, auto (a plain "
            "one, from the shapes), or an adapter's base directory."
        ),
    ] = None
    model_args: Annotated[
        dict[str, Any], Meta(description="Argument of the model factory, name=value; repeatable.")
    ] = {}
    data: Annotated[
        str | None,
        Meta(
            description="Batches: .npz, .npy, .safetensors, .pt, .csv, .parquet, .txt, .jsonl, a folder of images, or "
            "module:attribute."
        ),
    ] = None
    input_key: Annotated[
        list[str], Meta(description="Name of an input in the data; repeatable, in order.")
    ] = []
    target_key: Annotated[str | None, Meta(description="Name of the targets in the data.")] = None
    target_column: Annotated[
        str | None, Meta(description="Column with the targets of a .csv or .parquet file.")
    ] = None
    text_key: Annotated[
        str | None, Meta(description="Field with the text of a .jsonl file; default: text.")
    ] = None
    sequence_length: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Tokens of a sample; default: 128, or what the model can hold."),
    ] = None
    loss: Annotated[
        str | None,
        Meta(
            description="cross_entropy, mse, l1, huber, bce_with_logits, nll, token_cross_entropy, contrastive, "
            "model, output, or module:function."
        ),
    ] = None
    loss_args: Annotated[
        dict[str, Any], Meta(description="Argument of the loss, name=value; repeatable.")
    ] = {}
    objective: Annotated[
        str | None,
        Meta(
            description="module:function (model, batch) -> mean loss or (sum, count); replaces --loss."
        ),
    ] = None
    weight_decay: Annotated[float, Meta(description="Adds (wd/2)·‖θ‖² to the loss.", ge=0)] = 0.0
    batch_size: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Samples per batch; default: the data's own."),
    ] = None
    max_batches: Annotated[
        Annotated[int, Meta(ge=1, le=_LARGEST)] | None,
        Meta(description="Read only the first so many batches."),
    ] = None
    params: Annotated[
        list[str], Meta(description="Only parameters whose names match, e.g. 'fc*'; repeatable.")
    ] = []
    device: Annotated[str, Meta(description="auto, cpu, cuda[:N] or mps.")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "float64", "float16", "bfloat16"],
        Meta(description="Type to compute in; auto: the checkpoint's, at least float32."),
    ] = "auto"
    seed: Annotated[
        int,
        Meta(description="Seed of all random draws.", ge=0, le=_LARGEST),
    ] = 0
    train_mode: Annotated[
        bool, Meta(description="Use batch statistics (BatchNorm); dropout stays off.")
    ] = False
    memory: Annotated[
        str | None, Meta(description="Memory to stay within, e.g. 2GB; default: what is free.")
    ] = None
    offload: Annotated[
        str | None,
        Meta(
            description="Keep Krylov vectors (of a CPU the weights too) in a file in this folder, or in the host's "
            "memory (host), instead of on the device."
        ),
    ] = None
    shard: Annotated[
        bool,
        Meta(
            description="Divide weights and vectors among the processes (--ranks, torchrun); done unasked where no "
            "process has room for them."
        ),
    ] = False
    plain: Annotated[
        bool, Meta(description="Use torch's own operations only, without faster forms of layers.")
    ] = False
    tf32: Annotated[bool, Meta(description="Allow TF32 products on CUDA.")] = False
    allow_partial: Annotated[
        bool, Meta(description="Accept missing, unexpected and misshapen weights.")
    ] = False
    unsafe_pickle: Annotated[
        bool,
        Meta(description="Run the code inside a pickled checkpoint. Only for files you trust."),
    ] = False
    trust_remote_code: Annotated[
        bool,
        Meta(description="Run Python code inside a model directory. Only for those you trust."),
    ] = False

    @property
    def memory_bytes(self) -> int | None:
        """The memory limit in bytes."""
        return parse_size(self.memory) if self.memory is not None else None


class TargetFile(msgspec.Struct, frozen=True):
    """A target file's content."""

    settings: dict[str, Any]
    """Values of `TargetSpec` fields, paths made absolute."""
    options: dict[str, dict[str, Any]]
    """Tables with options of single analyses, by command."""
    path: str | None = None


# Settings that let code in a file run, a file be overwritten or a disk be filled: only the command line has them.
PROTECTION = {"unsafe-pickle", "trust-remote-code", "force", "offload"}
# Options that make a command write a file besides its answer.
_WRITING = {"state", "to", "update_baseline"}
# Options of single analyses that name a file to read.
_READ = {("gradients", "since"), ("check", "since"), ("compare", "other_data")} | {
    (command, "optimizer") for command in ("hessian", "trace", "density")
}
_CODE = ("model", "data", "loss", "objective")
_LIBRARIES = ("timm", "torchvision")
_PATHS = ("checkpoint", "model", "data", "loss", "objective")
FIELDS = {f.encode_name: f.name for f in msgspec.structs.fields(TargetSpec)}
"""Settings by the name that target files give them."""
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes in a size such as ``512MB``, ``2GB`` or ``1.5GiB`` (MB = 10⁶, MiB = 2²⁰)."""
    match = _SIZE.fullmatch(text)
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"{text!r} is not a size", "write it like 512MB or 2GB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " kmgt".index(match[2].lower() or " "))


def read_target_file(path: Path, commands: tuple[str, ...]) -> TargetFile:
    """Read a ``.toml`` target file; paths in it are relative to it.

    Raises:
        UsageError: it is missing, not TOML, or has an unknown key.
    """
    return _split(_toml(path), path.parent, str(path), commands)


def is_target_file(path: Path) -> bool:
    """Whether a ``.toml`` file names a checkpoint or a model; those of other programs have tables only."""
    try:
        return not {"checkpoint", "model"}.isdisjoint(_toml(path))
    except UsageError:
        return False


def is_reference(text: str) -> bool:
    """Whether ``text`` names an attribute of a module rather than a file."""
    module, colon, attribute = text.rpartition(":")
    return bool(colon) and len(module) > 1 and attribute.isidentifier()


def read_pyproject(commands: tuple[str, ...]) -> TargetFile:
    """The same settings from ``[tool.curvcli]`` of the pyproject in the working directory, if there is one.

    Raises:
        UsageError: it is not TOML, has an unknown key, or no table where one belongs.
    """
    path = Path.cwd() / "pyproject.toml"
    if not path.is_file():
        return TargetFile({}, {})
    table: Any = _toml(path)
    for name in ("tool", "curvcli"):
        table = table.get(name, {})
        if not isinstance(table, dict):
            raise UsageError(f"{name!r} in {path} is {table!r:.40}, not a table", "mend it")
    return _split(table, path.parent, f"[tool.curvcli] in {path}", commands)


def reaching(file: TargetFile, overridden: Iterable[str]) -> list[str]:
    """Settings of a file that make code of its folder run, or files be written, unless they are overridden."""
    code = [
        key
        for key, value in file.settings.items()
        if key in _CODE
        and key not in overridden
        and isinstance(value, str)
        and is_reference(value)
        and value.partition(":")[0] not in _LIBRARIES
    ]
    return code + [
        f"{command}.{name}"
        for command, values in file.options.items()
        for name in values
        if name in _WRITING
    ]


def make_spec(*layers: dict[str, Any]) -> TargetSpec:
    """Merge settings, later ones first served, and validate them.

    Raises:
        UsageError: a value has the wrong type or is out of range, or options contradict each other.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            earlier = merged.get(key)
            merged[key] = {**earlier, **value} if isinstance(earlier, dict) else value
    # A later layer that names one way of computing the loss overrides the other way.
    for layer in reversed(layers):
        if "loss" in layer or "objective" in layer:
            for other in {"loss", "objective"} - layer.keys():
                merged.pop(other, None)
            break
    try:
        spec = msgspec.convert(merged, TargetSpec)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        raise UsageError(
            f"the setting {place.strip('`')!r} {expected(problem)}",
            "'curvcli hessian --help' lists them",
        ) from None
    if spec.loss is not None and spec.objective is not None:
        raise UsageError(
            "both a loss and an objective are given", "drop one: --objective replaces --loss"
        )
    if spec.memory is not None:
        parse_size(spec.memory)
    return spec


def option_fields() -> list[tuple[str, Any, Any, str]]:
    """(name, type, default, description) of every setting, for the command line."""
    hints = get_type_hints(TargetSpec, include_extras=True)
    result = []
    for item in msgspec.structs.fields(TargetSpec):
        hint = hints[item.name]
        kind, meta = (
            (get_args(hint)[0], get_args(hint)[1])
            if get_origin(hint) is Annotated
            else (hint, None)
        )
        default = None if item.default is msgspec.NODEFAULT else item.default
        result.append((item.name, kind, default, meta.description if meta else ""))
    return result


def _toml(path: Path) -> dict[str, Any]:
    check_regular(path, UsageError, "target file")
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(
            f"{str(path)!r} cannot be read: {error.strerror}", "check the path"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{str(path)!r} is not a TOML file: {str(error)[:200]}", "mend it at that place"
        ) from None


def _split(
    table: dict[str, Any], folder: Path, where: str, commands: tuple[str, ...]
) -> TargetFile:
    settings: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}
    for key, value in table.items():
        nested = list(value) if key in commands and isinstance(value, dict) else []
        unsafe = next((name for name in (key, *nested) if name in PROTECTION), None)
        if unsafe is not None:
            raise UsageError(
                f"{where} sets {unsafe}, which only the command line may",
                f"take it out; pass --{unsafe} yourself if you trust what is inspected",
            )
        if key in commands and isinstance(value, dict):
            options[key] = {
                name.replace("-", "_"): _anchor(v, folder) if (key, name) in _READ else v
                for name, v in value.items()
            }
        elif key in FIELDS:
            listed = [value] if key in ("input-key", "params") and isinstance(value, str) else value
            settings[key] = _anchor(listed, folder) if key in _PATHS else listed
        else:
            raise UsageError(
                f"{where} has an unknown key {key!r}." + did_you_mean(key, [*FIELDS, *commands]),
                f"known keys: {', '.join(FIELDS)}; tables: {', '.join(commands)}",
            )
    return TargetFile(settings, options, where)


def _anchor(value: Any, folder: Path) -> Any:
    """Make a path or ``file.py:attribute`` absolute; leave names and ``module:attribute`` alone."""
    if not isinstance(value, str):
        return value
    path, colon, attribute = value.rpartition(":")
    if colon and path.endswith(".py"):
        return f"{folder / path}:{attribute}"
    if colon and len(path) > 1:
        return value
    is_path = "/" in value or (folder / value).exists() or Path(value).suffix in _SUFFIXES
    return str(folder / value) if is_path else value


_SUFFIXES = {
    ".safetensors", ".pt", ".pth", ".bin", ".npz", ".json", ".ckpt", ".pt2", ".ts", ".csv", ".parquet",
    ".txt", ".jsonl", ".npy",
}  # fmt: skip
