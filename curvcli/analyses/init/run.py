"""`curvcli init`: a target file for a checkpoint, with what it tells and what only the user knows."""

import json
import os
from pathlib import Path

from msgspec.structs import replace

from curvcli.analyses.init.command import InitOptions
from curvcli.analyses.init.result import NOT_EVALUATED, InitResult
from curvcli.analyses.init.settings import described, known, training_of
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.sanity import SanityInfo
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import CurvError, ModelError, OutputError, UsageError
from curvcli.files import write_whole
from curvcli.loading.checkpoints.checkpoint import Checkpoint
from curvcli.loading.models.guess import build_auto, recognise
from curvcli.loading.models.huggingface import is_directory
from curvcli.loading.models.model import load_weights


def run(subject: Subject, options: InitOptions, journal: Journal) -> Answer[InitResult]:
    """Answer `curvcli init`; see `InitOptions`.

    Raises:
        CheckpointError: the file cannot be used.
        UsageError: the target file exists.
    """
    given = subject.spec.checkpoint
    if given is None:
        raise UsageError("no checkpoint is given", "name one: curvcli init weights.safetensors")
    source = Path(given)
    target = (
        Path(options.to)
        if options.to is not None
        else Path(f"{source.resolve().stem or 'target'}.toml")
    )
    if target.exists() and not options.force:
        raise UsageError(f"{str(target)!r} exists", "name another by --to, or pass --force")
    form, recognised, settings, unknown, remarks = _look(subject, journal, source)
    given_here = known(subject.spec, target.resolve().parent)
    settings = {**settings, **given_here}
    unknown = {k: v for k, v in unknown.items() if k not in given_here}
    if "objective" in given_here:
        unknown.pop("loss", None)
    training = training_of(subject.spec)
    remarks += described(training)
    text = _write(source, target, recognised, settings, unknown, remarks)
    try:
        write_whole(target, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise OutputError(
            f"{str(target)!r} cannot be written: {error.strerror}", "name another file by --to"
        ) from None
    sane = None if unknown else _evaluated(subject, journal, settings)
    return journal.answer(
        InitResult(str(target), form, recognised, settings, list(unknown), text, training, sane)
    )


def _evaluated(subject: Subject, journal: Journal, settings: dict[str, str]) -> SanityInfo | None:
    """How well the network does, once everything is known; what is wrong with it is a note."""
    spec = replace(subject.spec, model=subject.spec.model or settings.get("model"))
    try:
        return Subject(spec).forward_pass()
    except CurvError as problem:
        journal.note(f"{NOT_EVALUATED}: {problem.message}")
        return None


def _look(
    subject: Subject, journal: Journal, source: Path
) -> tuple[str, str | None, dict[str, str], dict[str, str], list[str]]:
    """(format, what it is, settings, what to fill in with an example, remarks)."""
    data = {"data": "val.npz"}
    if is_directory(source):
        directory = subject.target.directory
        assert directory is not None
        text = directory.task in ("causal", "masked", "sentences")
        example = {"data": "corpus.txt" if text else "reviews.jsonl"}
        settings, unknown = {}, example if directory.task != "images" else {"data": "images/"}
        if directory.task == "other" and directory.architecture.endswith("Model"):
            unknown["loss"] = "losses.py:loss"  # a network without a head
        else:
            settings["loss"] = directory.loss()
        what = directory.architecture or "sentence encoder"
        return "Hugging Face directory", what, settings, unknown, [f"task: {directory.task}"]
    checkpoint = subject.target.checkpoint
    assert checkpoint is not None
    unknown = {**data, "loss": "cross_entropy"}
    if checkpoint.program is not None:
        return checkpoint.format, "a program that holds its network", {}, unknown, []
    if subject.spec.model is not None:
        return checkpoint.format, None, {}, unknown, list(checkpoint.notes)
    return (checkpoint.format, *_guess(journal, checkpoint, unknown))


def _guess(
    journal: Journal, checkpoint: Checkpoint, unknown: dict[str, str]
) -> tuple[str | None, dict[str, str], dict[str, str], list[str]]:

    remarks = list(checkpoint.notes)
    guess = recognise(checkpoint)
    if guess is None:
        return None, {}, {"model": "models.py:Net", **unknown}, remarks
    try:
        journal.notes.extend(load_weights(build_auto(checkpoint, {}), checkpoint))
    except ModelError as error:
        remarks.append(f"looked like a plain {guess.kind}, but: {error.message}")
        return None, {}, {"model": "models.py:Net", **unknown}, remarks
    widths = " → ".join(str(n) for n in (guess.inputs, *(x.shape[0] for x in guess.layers)))
    remarks.append("the weights were loaded into it strictly: names and shapes fit")
    remarks.append(
        "assumed, since no shape tells it: relu between layers"
        + (
            ", stride 1, padding k//2, no pooling between convolutions"
            if guess.kind == "CNN"
            else ""
        )
        + '; change it by model-args = { activation = "tanh"'
        + (", pool = 2" if guess.kind == "CNN" else "")
        + " }"
    )
    return f"{guess.kind} {widths}", {"model": "auto"}, unknown, remarks


def _write(
    source: Path,
    target: Path,
    recognised: str | None,
    settings: dict[str, str],
    unknown: dict[str, str],
    remarks: list[str],
) -> str:

    relative = os.path.relpath(source.resolve(), target.resolve().parent)
    first = recognised or ("" if "model" in settings else "The network was not recognised.")
    lines = [f"# {first}"] if first else []
    lines += [f"# {line}" for line in remarks]
    lines += ["", f"checkpoint = {_quoted(relative)}"]
    lines += [f"{key} = {_quoted(value)}" for key, value in settings.items()]
    lines += (
        ["", "# What the checkpoint does not tell; remove the # and fill in:"] if unknown else []
    )
    lines += [f"# {key} = {_quoted(value)}" for key, value in unknown.items()]
    return "\n".join(_plain(line) for line in lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML string: names from the disk may hold anything."""
    return json.dumps(text, ensure_ascii=True).replace("\\/", "/")


def _plain(line: str) -> str:
    """Without control characters, which TOML does not allow and terminals obey."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)
