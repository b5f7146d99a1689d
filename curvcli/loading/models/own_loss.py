"""The loss that a Hugging Face model computes itself from labels, and what has to be learnt of it.

Such a loss is one number for a batch, a mean over labels or samples. How many terms it is a mean of, whether the
labels are shifted inside, and whether a batch may be cut is not declared anywhere: a few samples tell.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from curvcli.errors import CurvError, DataError, LossError, some
from curvcli.loading.loss import OutputLoss, loss_terms
from curvcli.loading.models.forward import Forward
from curvcli.objective.batch import Batch
from curvcli.objective.calls import call_model, main_output
from curvcli.objective.network import untouched_buffers
from curvcli.objective.terms import IGNORED

OWN = ("model", "output")
"""Names of ``--loss`` for the model's own loss of a Hugging Face directory."""
_SAMPLES = 4
# Rounding of a mean over a batch against that over its parts, in units of the dtype's.
_ROUNDING = 100
Counting = Literal["labels", "attended", "samples"]


@dataclass(frozen=True)
class OwnLoss:
    """``model(**inputs, labels=…).loss`` times the number of its terms; see `LossTerms`.

    Args:
        forward: of the model.
        ignored: labels that do not count.
        counting: what the loss is a mean over: labels that count, of attended tokens only, or samples.
        shifted: whether the label of a token is compared with the output before it.
    """

    forward: Forward
    ignored: tuple[int, ...] = (IGNORED,)
    counting: Counting = "labels"
    shifted: bool = False

    @property
    def name(self) -> str:
        """Of ``--loss``."""
        return OWN[0]

    def __call__(self, model: nn.Module, data: Any) -> tuple[Tensor, float]:
        """(sum of the loss terms, how many)."""
        output, loss = self.evaluate(model, data)
        count = self.count(data)
        if not count:
            # A mean over no terms is 0/0, and so is its derivative.
            return 0.0 * main_output(output).nan_to_num(0.0, 0.0, 0.0).sum(), 0.0
        return loss * count, count

    def evaluate(self, model: nn.Module, data: Any) -> tuple[Any, Tensor]:
        """The model's output with its loss.

        Raises:
            LossError: there is none, or it is no number.
            DataError: there are no labels to compute it from.
        """
        _, keywords, targets = data
        labels = self.forward.named_labels(targets)
        asked = {"return_loss": True} if "return_loss" in self.forward.names else {}
        output = call_model(model, (), {**keywords, **labels, **asked})
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if loss is None:
            self._refuse(labels)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise LossError(
                f"the loss of {self.forward.owner} is no single number",
                "pass a named --loss, or an --objective file.py:function",
            )
        return output, loss.reshape(())

    def count(self, data: Any) -> float:
        """How many terms the loss is a mean of."""
        _, keywords, targets = data
        if self.counting == "samples" or not isinstance(targets, Tensor):
            return float(_samples(data))
        counts = self.counted(targets)
        mask = keywords.get("attention_mask")
        if self.counting == "attended" and mask is not None:
            counts = counts & (mask != 0)
        return float(counts.sum())

    def counted(self, labels: Tensor) -> Tensor:
        """Which labels the loss runs over."""
        counts = torch.ones_like(labels, dtype=torch.bool)
        if not labels.is_floating_point():
            for value in self.ignored:
                counts &= labels != value
        if self.shifted:
            counts[:, 0] = False
        return counts

    def _refuse(self, labels: Mapping[str, Any]) -> None:
        owner, known = self.forward.owner, self.forward.labels
        if not known:
            raise LossError(
                f"{owner} has no loss of its own: its forward takes no labels",
                "name a --loss (cross_entropy, mse, …), or give an --objective file.py:function",
            )
        given = f"only {some(labels)}" if labels else "none"
        raise DataError(
            f"{owner} computes its loss from {some(known)}, and the data has {given}",
            "add them to the data or name them by --target-key; or pass a named --loss",
        )


@dataclass(frozen=True, kw_only=True)
class SplitOwnLoss(OwnLoss):
    """A model's own loss that is a named loss of its outputs; see `SplitLoss`."""

    of: OutputLoss

    @property
    def name(self) -> str:
        """The named loss that it is."""
        return self.of.name

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Of the named loss."""
        return self.of.arguments

    def outputs(self, model: nn.Module, data: Any) -> Tensor:
        """The model's main output."""
        return self.of.outputs(model, data)

    def of_outputs(self, outputs: Tensor, data: Any) -> tuple[Tensor, float]:
        """(sum of the loss terms, how many) for these outputs."""
        return self.of.of_outputs(outputs, (*data[:2], self.targets(data)))

    def targets(self, data: Any) -> Tensor:
        """The labels that the outputs are compared with, place by place."""
        labels: Tensor = data[2]
        return next_tokens(labels) if self.shifted else labels


@dataclass(frozen=True)
class Learnt:
    """A model's own loss, and whether the loss of a batch is that of its pieces."""

    loss: OwnLoss
    additive: bool


def next_tokens(labels: Tensor) -> Tensor:
    """The label after each place, ``IGNORED`` at the end.

    >>> next_tokens(torch.tensor([[1, 2, 3]]))
    tensor([[   2,    3, -100]])
    """
    shifted = torch.full_like(labels, IGNORED)
    shifted[:, :-1] = labels[:, 1:]
    return shifted


def learn(model: nn.Module, batches: Sequence[Batch], forward: Forward) -> Learnt:
    """The model's own loss, from evaluations of a few samples of the largest batch.

    Raises:
        LossError: the model has no loss.
        DataError: the data has no labels.
    """
    config = getattr(model, "config", None)
    background = getattr(config, "semantic_loss_ignore_index", None)
    loss = OwnLoss(forward, (IGNORED,) if background is None else (background,))
    model.eval()
    with torch.no_grad(), untouched_buffers(model):
        batch = max(batches, key=lambda b: b.size)
        few = _few(loss, batch)
        output, whole = loss.evaluate(model, few.data)
        if _shifts(loss, model, few.data, output, whole):
            loss = replace(loss, shifted=True)
        # A loss of routers is a product of two means over the batch.
        if few.size == 1 or getattr(output, "aux_loss", None) is not None:
            return Learnt(_split(loss, output, few.data, whole) or loss, few.size == 1)
        parts = [
            (part.data, loss.evaluate(model, part.data)[1])
            for part in few.pieces(1)
            if loss.count(part.data)
        ]
    for counting in _countings(loss, few.data):
        counted = replace(loss, counting=counting)
        counts = [counted.count(data) for data, _ in parts]
        mean = sum(c * float(part) for c, (_, part) in zip(counts, parts, strict=True))
        if few.splittable and _equal(mean / max(1.0, sum(counts)), whole):
            return Learnt(_split(counted, output, few.data, whole) or counted, True)
    return Learnt(loss, False)


def _few(loss: OwnLoss, batch: Batch) -> Batch:
    """Samples that differ as much as they can in the number of their labels, then in the labels."""
    if not batch.splittable or batch.size <= 2:
        return batch
    keys = []
    for number, one in enumerate(batch.pieces(1)):
        labels = one.data[2]
        value = float(labels.double().sum()) if isinstance(labels, Tensor) else 0.0
        keys.append((loss.count(one.data), value, number))
    order = [number for *_, number in sorted(keys)]
    samples = min(_SAMPLES, batch.size)
    places = [round(i * (batch.size - 1) / (samples - 1)) for i in range(samples)]
    return batch.take([order[place] for place in places])


def _shifts(loss: OwnLoss, model: nn.Module, data: Any, output: Any, whole: Tensor) -> bool:
    """Whether the first label of a sequence is not looked at."""
    positional, keywords, labels = data
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() != 2:
        return False
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:-1] != labels.shape or labels.shape[1] < 2:
        return False
    if loss.forward.repeats:  # labels are inputs of the decoder, shifted there
        return False
    present = labels[labels != IGNORED]
    if not len(present):
        return False
    # Each first label is ignored if it was not, and the other way round: a loss that reads them changes.
    other = labels.clone()
    other[:, 0] = torch.where(labels[:, 0] == IGNORED, present[0], IGNORED)
    return _equal(float(loss.evaluate(model, (positional, keywords, other))[1]), whole)


def _countings(loss: OwnLoss, data: Any) -> Iterator[Counting]:
    _, keywords, targets = data
    yield "labels"
    mask = keywords.get("attention_mask")
    if isinstance(targets, Tensor) and isinstance(mask, Tensor) and mask.shape == targets.shape:
        yield "attended"
    yield "samples"


def _split(loss: OwnLoss, output: Any, data: Any, whole: Tensor) -> SplitOwnLoss | None:
    """The loss as a named one of the outputs, where it is that."""
    labels = data[2]
    outputs = getattr(output, "logits", None)
    if not isinstance(labels, Tensor) or not isinstance(outputs, Tensor):
        return None
    names: tuple[str, ...]
    if labels.is_floating_point():
        names = ("bce_with_logits", "mse")
    else:
        names = ("token_cross_entropy",) if outputs.dim() == 3 else ("cross_entropy",)
    for name in names:
        terms = loss_terms(name, {})
        assert isinstance(terms, OutputLoss)
        fields = {k: getattr(loss, k) for k in ("forward", "ignored", "counting", "shifted")}
        split = SplitOwnLoss(**fields, of=terms)
        try:
            total, count = split.of_outputs(outputs, data)
        except (CurvError, RuntimeError):
            continue
        if count == loss.count(data) and _equal(float(total) / max(1.0, count), whole):
            return split
    return None


def _samples(data: Any) -> int:
    _, keywords, targets = data
    listed = [*keywords.values(), targets]
    return next((len(t) for t in listed if isinstance(t, Tensor) and t.dim()), 1)


def _equal(value: float, whole: Tensor) -> bool:
    return abs(value - float(whole)) <= _ROUNDING * torch.finfo(whole.dtype).eps * abs(float(whole))
