"""What a target lacks, all of it at once and with a command that has it; found before torch is imported."""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from curvcli.errors import CurvError, DataError, LossError, ModelError
from curvcli.loading.spec import TargetSpec

# What is looked through for an example: so many files of the working directory, so many bytes of each.
_FILES, _BYTES = 50, 200_000
_CLASS = re.compile(r"^class (\w+)\((?:\w+\.)*(?:nn\.)?(?:Module|Sequential)\)", re.MULTILINE)
_DATA = (".npz", ".npy", ".csv", ".parquet", ".jsonl")


def check_complete(command: str, spec: TargetSpec, *, needed: Sequence[str], series: bool) -> None:
    """Raise an error that names everything that is missing.

    Directories and programs bring their network, and a missing file is an error of its own: these are looked at later.

    Args:
        command: for the example.
        spec: the settings.
        needed: model, data, loss, as far as the question needs them.
        series: of a checkpoint among several, whose settings a target file gives.

    Raises:
        ModelError, DataError, LossError: by what is missing first.
    """
    checkpoint = Path(spec.checkpoint) if spec.checkpoint is not None else None
    if checkpoint is not None and (not checkpoint.is_file() or _program(checkpoint)):
        return
    model = "model" in needed and spec.model is None
    data = "data" in needed and spec.data is None
    loss = "loss" in needed and spec.loss is None and spec.objective is None
    if model and checkpoint is None:
        raise ModelError(
            "nothing to inspect: neither a checkpoint nor a model is given",
            f"for example: curvcli {command} model.pt {_flags(True, True, loss)}",
        )
    told: list[tuple[bool, type[CurvError], str]] = [
        (model, ModelError, "a checkpoint holds weights, not the network they belong to"),
        (data, DataError, "no data is given"),
        (loss, LossError, "no loss is given"),
    ]
    missing = [(kind, text) for absent, kind, text in told if absent]
    if not missing:
        return
    named = spec.checkpoint or ""
    given = [f"--{n} {v}" for n in ("model", "data", "loss") if (v := getattr(spec, n)) is not None]
    line = " ".join([*filter(None, [named]), *given, _flags(model, data, loss)])
    if series:
        example = (
            f"a target file with model, data and loss goes first: curvcli {command} model.toml {named}; "
            f"to write one: curvcli init {line}"
        )
    else:
        example = f"for example: curvcli {command} {line}"
    raise missing[0][0]("; ".join(text for _, text in missing), example)


def _flags(model: bool, data: bool, loss: bool) -> str:
    """Flags for what is missing, with names from the working directory where it has some."""
    return " ".join(
        [
            *([f"--model {_network()}"] if model else []),
            *([f"--data {_data()}"] if data else []),
            *(["--loss cross_entropy"] if loss else []),
        ]
    )


def _network() -> str:
    """The first network that a Python file here defines; it is read, never run."""
    for path in sorted(Path.cwd().glob("*.py"))[:_FILES]:
        try:
            found = _CLASS.search(path.read_text("utf-8", errors="replace")[:_BYTES])
        except OSError:
            continue
        if found:
            return f"{path.name}:{found[1]}"
    return "train.py:Net"


def _data() -> str:
    here = sorted(p.name for p in Path.cwd().glob("*") if p.suffix in _DATA)
    return here[0] if here else "DATA.npz"


def _program(path: Path) -> bool:
    """Whether the file holds its network: `torch.export` and TorchScript archives."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
    return any("/code/" in n or "archive_format" in n or "/models/" in n for n in names)
