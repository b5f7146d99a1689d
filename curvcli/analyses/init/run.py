"""`curvcli init`: a target file for a checkpoint, with what it tells and what only the user knows."""

import os
from pathlib import Path

from msgspec.structs import replace
from torch import nn

from curvcli.analyses.init.command import InitOptions
from curvcli.analyses.init.result import NOT_EVALUATED, InitResult
from curvcli.analyses.init.settings import described, known, others, toml, training_of
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.sanity import SanityInfo
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.shared.target_schema import ADDRESS
from curvcli.errors import CurvError, ModelError, OutputError, UsageError
from curvcli.files import write_whole
from curvcli.loading.checkpoints.checkpoint import Checkpoint
from curvcli.loading.models.guess import Form, PlainNetwork, build_auto, recognise
from curvcli.loading.models.huggingface import is_directory
from curvcli.loading.models.model import load_weights
from curvcli.loading.target import Target

_ASSUMED = "assumed, since no shape tells it"


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
    relative = os.path.relpath(source.resolve(), target.resolve().parent)
    written = [
        f"{key} = {toml(value)}" for key, value in [("checkpoint", relative), *settings.items()]
    ]
    written += [f"{key} = {value}" for key, value in others(subject.spec).items()]
    first = recognised or ("" if "model" in settings else "The network was not recognised.")
    text = _text(first, written, unknown, remarks)
    _write(target, text)
    sane = None
    if not unknown:
        sane, tried = _evaluated(subject, journal, settings)
        if sane is not None and tried.guess is not None:
            remarks = [r for r in remarks if not r.startswith(_ASSUMED)]
            remarks += [f"no shape tells its form: {tried.guess}", *_confirmed(tried.model)]
            text = _text(first, written, unknown, remarks)
            _write(target, text)
    return journal.answer(
        InitResult(str(target), form, recognised, settings, list(unknown), text, training, sane)
    )


def _write(target: Path, text: str) -> None:
    try:
        write_whole(target, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise OutputError(
            f"{str(target)!r} cannot be written: {error.strerror}", "name another file by --to"
        ) from None


def _evaluated(
    subject: Subject, journal: Journal, settings: dict[str, str]
) -> tuple[SanityInfo | None, Target]:
    """How well the network does, once everything is known; what is wrong with it is a note."""
    tried = Subject(replace(subject.spec, model=subject.spec.model or settings.get("model")))
    try:
        return tried.forward_pass(), tried.target
    except CurvError as problem:
        hint = f"; {problem.hint}" if problem.hint else ""
        journal.note(f"{NOT_EVALUATED}: {problem.message}{hint}")
        return None, tried.target


def _confirmed(network: nn.Module) -> list[str]:
    """How the user says that the form found is theirs."""
    if not isinstance(network, PlainNetwork):
        return []
    names = Form._fields if network.images else ("activation",)
    return [
        "if it is yours, say so here, and no answer warns of a guess any more:",
        f"model-args = {toml({name: getattr(network.form, name) for name in names})}",
    ]


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
        f"{_ASSUMED}: relu between layers"
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


def _text(first: str, written: list[str], unknown: dict[str, str], remarks: list[str]) -> str:
    """The target file: what it is, its settings, and what to fill in."""
    lines = [f"#:schema {ADDRESS}", *[f"# {line}" for line in [first, *remarks] if line]]
    lines += ["", *written]
    lines += (
        ["", "# What the checkpoint does not tell; remove the # and fill in:"] if unknown else []
    )
    lines += [f"# {key} = {toml(value)}" for key, value in unknown.items()]
    return "\n".join(_plain(line) for line in lines) + "\n"


def _plain(line: str) -> str:
    """Without control characters, which TOML does not allow and terminals obey."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)
