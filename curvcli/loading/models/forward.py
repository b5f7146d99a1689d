"""How a Hugging Face model is called: everything by the names in its forward's signature."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.errors import DataError, did_you_mean, some
from curvcli.loading.data.pairs import TARGET_NAMES
from curvcli.objective.terms import IGNORED

_FLOAT_LABELS = ("regression", "multi_label_classification")


@dataclass(frozen=True)
class Forward:
    """The forward of a model.

    Args:
        owner: name of the class.
        names: its named arguments.
        labels: those that hold labels.
        main: the input that a batch without names holds.
        float_labels: whether labels are values, not numbers of classes.
        repeats: whether labels are inputs too (a decoder reads them).
        predicts_inputs: whether, without labels, the tokens themselves are what is predicted.
    """

    owner: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    main: str
    float_labels: bool = False
    repeats: bool = False
    predicts_inputs: bool = False

    def named_labels(self, targets: Any) -> dict[str, Any]:
        """Targets as keyword arguments."""
        if targets is None:
            return {}
        return dict(targets) if isinstance(targets, Mapping) else {self._label("labels"): targets}

    def arrange(
        self, raw: Any, input_keys: Sequence[str] = (), target_key: str | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """A raw batch as ((), keyword arguments, targets or None), see `data.batches.arrange`.

        Targets are a tensor, or tensors by name where there are several kinds of labels.

        Raises:
            DataError: a name is not there, or the forward has no such argument.
        """
        if isinstance(raw, tuple | list) and len(raw) in (1, 2) and not (input_keys or target_key):
            inputs = raw[0] if isinstance(raw[0], Mapping) else {self.main: raw[0]}
            named: dict[str, Any] = {**inputs, **({"labels": raw[1]} if len(raw) == 2 else {})}
        elif isinstance(raw, Tensor):
            named = {self.main: raw}
        elif isinstance(raw, Mapping):
            named = {str(key): value for key, value in raw.items()}
        else:
            raise DataError(
                f"{self.owner} takes its inputs by name, and a batch is a {type(raw).__name__} without names",
                f"yield dicts; the names are {some(self.names, 8)}",
            )
        for key in (*input_keys, *([target_key] if target_key else [])):
            if key not in named:
                raise DataError(
                    f"the data has no {key!r}.{did_you_mean(key, named)}",
                    f"it has {some(named, 8)}",
                )
        labels = self._labels(named, input_keys, target_key)
        keys = list(input_keys) or [
            k for k in named if k not in labels and k not in self.labels and k != target_key
        ]
        targets: Any = {name: self._as_labels(named[key]) for key, name in labels.items()}
        keywords = self._inputs({key: named[key] for key in keys})
        if list(targets) in ([], [self._label("labels")]):
            targets = next(iter(targets.values()), None)
        if self.repeats:
            keywords |= self.named_labels(targets)
        return (), keywords, targets

    def own_tokens(self, keywords: Mapping[str, Any]) -> Tensor | None:
        """Tokens as the labels of themselves, padding ignored; None where the model does not predict its inputs."""
        ids = keywords.get("input_ids")
        if not self.predicts_inputs or not isinstance(ids, Tensor):
            return None
        mask = keywords.get("attention_mask")
        if isinstance(mask, Tensor) and mask.shape == ids.shape:
            return torch.where(mask != 0, ids, IGNORED)
        return ids.clone()

    def _label(self, name: str) -> str:
        return self.labels[0] if len(self.labels) == 1 and name not in self.labels else name

    def _labels(
        self, named: Mapping[str, Any], input_keys: Sequence[str], target_key: str | None
    ) -> dict[str, str]:
        """Labels in the data -> their names in the signature."""
        if target_key is not None:
            return {target_key: target_key if target_key in self.labels else self._label("labels")}
        found = {k: k for k in self.labels if k in named and k not in input_keys}
        usual = next((n for n in TARGET_NAMES if n in named and n not in input_keys), None)
        return found or ({usual: self._label("labels")} if usual else {})

    def _inputs(self, given: dict[str, Any]) -> dict[str, Any]:
        if not given:
            raise DataError("the data has no input, only labels", "name one by --input-key")
        unknown = [k for k in given if self.names and k not in self.names]
        if len(given) == 1 and unknown:
            return {self.main: next(iter(given.values()))}
        if unknown:
            raise DataError(
                f"{self.owner} takes no {some(unknown)}.{did_you_mean(unknown[0], self.names)}",
                f"it takes {some(self.names, 8)}; name the inputs in the data by --input-key",
            )
        return given

    def _as_labels(self, labels: Any) -> Any:
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            return labels
        # What the losses take: numbers of classes are int64, and 0/1 labels or values are floats.
        return labels.float() if self.float_labels else labels.long()


def forward_of(model: nn.Module, predicts_inputs: bool) -> Forward:
    """The forward of this model; of its base, where it is wrapped in an adapter."""
    base: Any = getattr(model, "get_base_model", lambda: model)()
    parameters = inspect.signature(base.forward).parameters.values()
    names = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    config = getattr(base, "config", None)
    kind = getattr(config, "problem_type", None)
    single = kind is None and getattr(config, "num_labels", None) == 1
    owner = type(base).__name__
    labels = tuple(n for n in names if "label" in n or n in ("start_positions", "end_positions"))
    return Forward(
        owner=owner,
        names=names,
        labels=labels,
        main=getattr(base, "main_input_name", None) or next(iter(names), "input_ids"),
        float_labels=kind in _FLOAT_LABELS
        or (single and owner.endswith(("ForSequenceClassification", "ForImageClassification"))),
        repeats=bool(getattr(config, "is_encoder_decoder", False)),
        predicts_inputs=predicts_inputs,
    )
