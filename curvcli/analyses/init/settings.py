"""What is known for a target file: settings given on the command line, and what the checkpoint says of its training."""

import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec

from curvcli.analyses.init.result import TrainingInfo
from curvcli.loading.checkpoints.training import read_training
from curvcli.loading.spec import TargetSpec

_WRITTEN = ("model", "data", "loss", "objective", "weights")
# Settings of the machine, and trust, which is given anew with each command.
_LEFT_OUT = (
    "checkpoint", "device", "memory", "plain", "tf32", "unsafe_pickle", "trust_remote_code",
)  # fmt: skip
_ADAPTIVE = ("adam", "adamw")


def known(spec: TargetSpec, folder: Path) -> dict[str, str]:
    """Settings that were given, their paths relative to the target file's folder."""
    given = {name: getattr(spec, name) for name in _WRITTEN}
    return {name: _relative(value, folder) for name, value in given.items() if value is not None}


def others(spec: TargetSpec) -> dict[str, str]:
    """The other settings that were given, by their names in a target file, as TOML writes them."""
    return {
        field.encode_name: toml(value)
        for field in msgspec.structs.fields(spec)
        if field.name not in (*_WRITTEN, *_LEFT_OUT)
        and (value := getattr(spec, field.name)) != _default(field)
    }


def _default(field: msgspec.structs.FieldInfo) -> Any:
    made = field.default_factory
    return field.default if made is msgspec.NODEFAULT else made()


def toml(value: Any) -> str:
    """A value as TOML writes it: names from the disk may hold anything, so all but ASCII is escaped."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{_key(name)} = {toml(v)}" for name, v in value.items())
        return f"{{ {pairs} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value).replace("\\/", "/")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _relative(value: str, folder: Path) -> str:
    """A path, or ``file.py:attribute``, seen from a folder; names stay as they are."""
    place, colon, attribute = value.rpartition(":")
    path = place if colon and place.endswith(".py") else value
    if not Path(path).exists():
        return value
    return os.path.relpath(Path(path).resolve(), folder) + (colon + attribute) * (path == place)


def training_of(spec: TargetSpec) -> TrainingInfo | None:
    """Step and optimizer from the file; None where it says nothing of them."""
    found = read_training(Path(spec.checkpoint or ""), spec.unsafe_pickle)
    if found is None:
        return None
    optimizer = found.optimizer
    adaptive = optimizer is not None and optimizer.kind in _ADAPTIVE
    return TrainingInfo(
        step=found.step,
        epoch=found.epoch,
        optimizer=optimizer.kind if optimizer else None,
        learning_rate=optimizer.learning_rate if optimizer else None,
        momentum=optimizer.momentum if optimizer and optimizer.kind == "momentum" else None,
        betas=optimizer.betas if optimizer and adaptive else None,
        weight_decay=optimizer.weight_decay if optimizer else None,
    )


def described(training: TrainingInfo | None) -> list[str]:
    """Remarks for the target file."""
    if training is None:
        return []
    named = {
        "step": training.step,
        "epoch": training.epoch,
        "optimizer": training.optimizer,
        "learning rate": training.learning_rate,
        "momentum": training.momentum,
        "betas": training.betas,
        "weight decay": training.weight_decay,
    }
    told = ", ".join(f"{name} {value}" for name, value in named.items() if value is not None)
    remarks = [f"the checkpoint says: {told}"]
    if training.optimizer in ("sgd", "momentum") and training.weight_decay:
        remarks.append(
            f"the optimizer adds its weight decay to the gradient: weight-decay = {training.weight_decay} "
            "makes it a part of the loss here too"
        )
    return remarks
