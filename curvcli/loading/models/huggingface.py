"""Hugging Face directories -> models, through the library's own classes; nothing is downloaded.

``config.json`` says which class (``architectures``), and with it what the task is. An adapter directory (peft)
names its base; ``modules.json`` makes it a sentence encoder.
"""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from torch import Tensor, nn

from curvcli.errors import CheckpointError, CurvError, ModelError, UsageError, some
from curvcli.files import check_regular
from curvcli.loading.checkpoints.archive import JSON_BYTES, read_json
from curvcli.machine.memory import not_of_memory
from curvcli.objective.sharding.shards import without_weights

Task = Literal["causal", "masked", "classification", "images", "sentences", "other"]
# Classes named like others whose text they do not take: what they predict is not made of text alone.
_NOT_OF_TEXT = ("XLNetLMHeadModel", "ElectraForPreTraining")
_EAGER = (
    "attention is computed by the eager implementation: fused kernels have no second derivative"
)


def is_directory(path: Path) -> bool:
    """Whether ``path`` is a directory that a Hugging Face library wrote."""
    return path.is_dir() and any(
        (path / name).is_file() for name in ("config.json", "adapter_config.json", "modules.json")
    )


class Directory:
    """A model directory.

    Args:
        path: with ``config.json``, ``adapter_config.json`` or ``modules.json``.
        base: directory of the model that an adapter belongs to, where it does not name it itself.
        trust_remote_code: run Python code that the directory contains.

    Raises:
        CheckpointError: a configuration is damaged, or needs code that is not trusted.
        ModelError: the base of an adapter is not here.
    """

    def __init__(
        self, path: Path, base: str | None = None, trust_remote_code: bool = False
    ) -> None:
        self.path = path
        self.trust = trust_remote_code
        self.adapter = path if (path / "adapter_config.json").is_file() else None
        if self.adapter is not None:
            self.path = _base(self.adapter, base)
        for file in self.path.rglob("*"):
            if file.exists() and not file.is_dir():
                check_regular(file, CheckpointError)
        self.sentences = (self.path / "modules.json").is_file()
        if self.sentences:
            _check_modules(self.path / "modules.json", trust_remote_code)
        self.config: dict[str, Any] = {}
        if (self.path / "config.json").is_file():
            self.config = read_json(self.path / "config.json", CheckpointError)
        listed = self.config.get("architectures")
        self.architecture = str(listed[0]) if isinstance(listed, list) and listed else ""

    @property
    def task(self) -> Task:
        """What the model was made for, from the name of its class."""
        if self.sentences:
            return "sentences"
        name = self.architecture
        if name in _NOT_OF_TEXT:
            return "other"
        if name.endswith(("ForCausalLM", "LMHeadModel")):
            return "causal"
        if name.endswith(("ForMaskedLM", "ForPreTraining")):
            return "masked"
        if name.endswith("ForSequenceClassification"):
            return "classification"
        return "images" if name.endswith("ForImageClassification") else "other"

    def loss(self, text: bool = False) -> str:
        """The name of the loss that is meant without another: the model's own, wherever it has one.

        Args:
            text: whether the data is text.
        """
        if self.sentences:
            return "contrastive"
        # The own loss of these needs to know which sentences follow each other.
        if text and self.task == "masked" and self.architecture.endswith("ForPreTraining"):
            return "token_cross_entropy"
        return "model"

    def load(self, allow_partial: bool = False) -> tuple[nn.Module, list[str]]:
        """The model with its weights in the dtype they are stored in, and notes.

        Raises:
            ModelError: the class is not known, or the weights do not fit it.
            CheckpointError: quantised weights, or remote code that is not trusted.
        """
        self._check_config()
        transformers = library()
        notes = [_EAGER]
        with _quiet(f"the directory {str(self.path)!r} cannot be loaded"):
            if self.sentences:
                model: nn.Module = _sentence_encoder(self.path, self.trust)
            else:
                model = self._pretrained(transformers, allow_partial, notes)
            if self.adapter is not None:
                model = _with_adapter(model, self.adapter)
                notes.append(
                    "the base of the adapter is frozen: only the adapter's parameters vary"
                )
        return model, notes

    def unfilled(self) -> tuple[nn.Module, list[str]] | None:
        """The model with its parameters on the meta device, and notes; None where weights are needed to build it."""
        self._check_config()
        if self.sentences or self.adapter is not None or not self._known():
            return None
        kind = getattr(library(), self.architecture)
        with _quiet(f"the directory {str(self.path)!r} cannot be loaded"), without_weights():
            config = kind.config_class.from_pretrained(str(self.path), local_files_only=True)
            return _ready(kind._from_config(config, attn_implementation="eager")), [_EAGER]

    def tokenizer(self) -> Any:
        """The directory's own tokenizer.

        Raises:
            ModelError: there is none.
        """
        transformers = library()
        with _quiet(f"the directory {str(self.path)!r} has no tokenizer that can be loaded"):
            return transformers.AutoTokenizer.from_pretrained(
                str(self.path), local_files_only=True, trust_remote_code=self.trust
            )

    def image_processor(self) -> Any:
        """The directory's own preprocessing of images.

        Raises:
            ModelError: there is none.
        """
        transformers = library()
        with _quiet(f"the directory {str(self.path)!r} has no image processor that can be loaded"):
            return transformers.AutoImageProcessor.from_pretrained(
                str(self.path), local_files_only=True, trust_remote_code=self.trust, backend="pil"
            )

    def _check_config(self) -> None:
        if "quantization_config" in self.config:
            raise CheckpointError(
                f"{self.path.name} holds quantised weights: they have no curvature",
                "use the checkpoint from before quantisation, or dequantise it and save it again",
            )
        if self.config.get("auto_map") and not self.trust and not self._known():
            raise CheckpointError(
                f"{self.path.name} needs Python code of its own ({some(self.config['auto_map'])})",
                "if you trust its origin, pass --trust-remote-code",
            )

    def _known(self) -> bool:
        found = getattr(library(), self.architecture, None) if self.architecture else None
        return inspect.isclass(found)

    def _pretrained(
        self, transformers: ModuleType, allow_partial: bool, notes: list[str]
    ) -> nn.Module:
        if self._known():
            kind = getattr(transformers, self.architecture)
        elif self.config.get("auto_map") and self.trust:
            kind = _auto_class(transformers, self.config["auto_map"])
        else:
            raise ModelError(
                f"config.json names the architecture {self.architecture or None!r}, which transformers "
                f"{transformers.__version__} does not have",
                "install the version the model was saved with, or build it by --model file.py:function",
            )
        if not hasattr(kind, "from_pretrained"):
            raise ModelError(
                f"config.json names {self.architecture!r}, which is not a model", "mend config.json"
            )
        model, info = kind.from_pretrained(
            str(self.path),
            local_files_only=True,
            trust_remote_code=self.trust,
            attn_implementation="eager",
            dtype="auto",
            output_loading_info=True,
            ignore_mismatched_sizes=allow_partial,
        )
        problems = [
            f"{len(names)} {what} ({some(sorted(map(str, names)), 3)})"
            for what, key in (
                ("missing", "missing_keys"),
                ("unexpected", "unexpected_keys"),
                ("of another shape", "mismatched_keys"),
            )
            if (names := info.get(key))
        ]
        if problems and not allow_partial:
            raise ModelError(
                f"the weights do not fit {self.architecture}: " + "; ".join(problems),
                "mend 'architectures' in config.json, or pass --allow-partial to go on with what fits",
            )
        if problems:
            notes.append("loaded in part: " + "; ".join(problems))
        return _ready(model)


def _ready(model: Any) -> nn.Module:
    """The model, set to compute what can be differentiated."""
    if getattr(model, "_can_set_experts_implementation", bool)():
        model.set_experts_implementation("eager")  # grouped products refuse float64
    assert isinstance(model, nn.Module)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # keys and values of a past that nobody reads
    return model


class SentenceEncoder(nn.Module):
    """A sentence-transformers model that takes and returns tensors."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.named_children():
            self.add_module(name, layer)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings, shape (samples, features)."""
        features: Any = {"input_ids": input_ids, "attention_mask": attention_mask}
        for layer in self.children():
            features = layer(features)
        embedding: Tensor = features["sentence_embedding"]
        return embedding


def library(name: str = "transformers") -> ModuleType:
    """The library, told to stay off the network.

    Raises:
        UsageError: it is not installed.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        module = __import__(name)
    except ImportError as error:
        raise UsageError(
            f"a Hugging Face directory needs {name}: {error}", "pip install 'curvcli[hf]'"
        ) from None
    if name == "transformers":
        module.logging.set_verbosity_error()
        module.logging.disable_progress_bar()
    return module


@contextmanager
def _quiet(what: str) -> Iterator[None]:
    """What the libraries raise on a directory they cannot use becomes one sentence."""
    try:
        yield
    except CurvError:
        raise
    except Exception as error:
        not_of_memory(error)
        reason = " ".join(str(error).split())
        remote = "trust_remote_code" in reason
        raise (CheckpointError if remote else ModelError)(
            f"{what}: {type(error).__name__}: {reason[:240]}",
            "if you trust its origin, pass --trust-remote-code"
            if remote
            else "--verbose shows the traceback",
        ) from error


def _base(adapter: Path, given: str | None) -> Path:
    named = str(
        read_json(adapter / "adapter_config.json", CheckpointError).get("base_model_name_or_path")
    )
    places = [Path(given)] if given else [Path(named), adapter / named]
    for place in places:
        if is_directory(place):
            return place
    raise ModelError(
        f"the adapter belongs to {given or named!r}, which is no directory here, and nothing is downloaded",
        "name the directory of its base by --model",
    )


def _check_modules(path: Path, trust: bool) -> None:
    """The modules of a sentence encoder are the library's own, and lie within the directory."""
    import msgspec

    try:
        if path.stat().st_size > JSON_BYTES:
            raise CheckpointError("modules.json is too large", "check what the file is")
        listed = msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OSError) as error:
        raise CheckpointError(f"modules.json is damaged: {error}", "copy it again") from None
    for module in listed:
        place, kind = str(module.get("path", "")), str(module.get("type", ""))
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise CheckpointError(
                f"modules.json names {place!r} outside its own folder", "get it from its author"
            )
        if not kind.startswith("sentence_transformers.") and not trust:
            raise CheckpointError(
                f"modules.json needs the Python class {kind!r}, which is not the library's own",
                "if you trust its origin, pass --trust-remote-code",
            )


def _sentence_encoder(path: Path, trust: bool) -> nn.Module:
    made = library("sentence_transformers").SentenceTransformer(
        str(path.resolve()),
        device="cpu",
        local_files_only=True,
        trust_remote_code=trust,
        model_kwargs={"attn_implementation": "eager"},
    )
    return SentenceEncoder(made)


def _with_adapter(model: nn.Module, adapter: Path) -> nn.Module:
    made = library("peft").PeftModel.from_pretrained(
        model, str(adapter.resolve()), is_trainable=True, local_files_only=True
    )
    assert isinstance(made, nn.Module)
    return made


def _auto_class(transformers: ModuleType, auto_map: dict[str, Any]) -> Any:
    for name in auto_map:
        if name.startswith("AutoModel") and hasattr(transformers, name):
            return getattr(transformers, name)
    raise ModelError("auto_map in config.json names no model", "mend config.json")
