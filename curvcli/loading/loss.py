"""Named losses, how many loss terms a batch has, and how a model is called with its data."""

import copy
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvcli.errors import DataError, LossError, did_you_mean, some
from curvcli.loading.aligned import aligned
from curvcli.loading.class_weights import class_weights
from curvcli.loading.data.batches import ONE_OR_MORE
from curvcli.loading.references import resolve
from curvcli.loading.spec import is_reference
from curvcli.machine.containers import fresh, samples_of
from curvcli.objective.calls import call_model, guarded, main_output
from curvcli.objective.terms import LossTerms

TermLoss = Callable[[Tensor, Tensor], tuple[Tensor, float]]
"""(outputs, targets) -> (sum of the loss terms, how many)."""


def class_last(outputs: Tensor, targets: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Logits as (terms, classes) and labels as (terms,), from (N, C, …) or (N, …, C) logits."""
    shape, labels = tuple(outputs.shape), tuple(targets.shape)
    if outputs.dim() >= 2 and labels == (shape[0], *shape[2:]):
        flat = outputs.movedim(1, -1)
    elif outputs.dim() >= 2 and labels == shape[:-1]:
        flat = outputs
    else:
        raise DataError(
            f"{name} needs logits (N, C, …) or (N, …, C) and labels (N, …); "
            f"found outputs {list(shape)} and targets {list(labels)}",
            "check --target-key, or pass your own --loss module:function",
        )
    return flat.reshape(-1, flat.shape[-1]), targets.reshape(-1)


# Labels on a device whose check was made, the latest of them; held, so that their memory is nothing else's.
_CHECKED: OrderedDict[tuple[Any, ...], tuple[Tensor, float]] = OrderedDict()
_KEPT = 256


def _counted(labels: Tensor, classes: int, ignore_index: int, name: str) -> float:
    """How many labels count. They are checked once where to look at them is to wait for a device."""
    if labels.device.type == "cpu":
        return float(_check_labels(labels, classes, ignore_index, name).sum())
    place = (labels.data_ptr(), labels._version, labels.dtype, labels.shape, labels.stride())
    key = (*place, labels.device, classes, ignore_index)
    if key not in _CHECKED:
        count = float(_check_labels(labels, classes, ignore_index, name).sum())
        _CHECKED[key] = labels, count
        if len(_CHECKED) > _KEPT:
            _CHECKED.popitem(last=False)
    return _CHECKED[key][1]


def _check_labels(labels: Tensor, classes: int, ignore_index: int, name: str) -> Tensor:
    """The mask of labels that count; all of them within the classes."""
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"{name} needs integer labels, found {str(labels.dtype).removeprefix('torch.')}",
            "save classes as whole numbers, y.astype('int64'); for 0/1 targets use bce_with_logits, for regression mse",
        )
    valid = labels != ignore_index
    counted = labels[valid]
    if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= classes):
        raise DataError(
            f"labels run from {int(counted.min())} to {int(counted.max())}, but the model has {classes} "
            f"outputs (classes 0 to {classes - 1})",
            _how_to_count(int(counted.min()), int(counted.max()), classes),
        )
    return valid


def _how_to_count(low: int, high: int, classes: int) -> str:
    """What mends labels beyond the classes."""
    if low == 1 and high == classes:
        return "count from 0: y - 1"
    return f"check the data, the model's head, or --loss-arg ignore_index={low}"


def cross_entropy(
    outputs: Tensor,
    targets: Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    weight: list[float] | None = None,
) -> tuple[Tensor, float]:
    """-log softmax(outputs)[target] summed over targets that are not ``ignore_index``.

    With a ``weight`` for each class a term counts as often as its class weighs, as in torch's weighted mean.
    """
    weights_C = class_weights(weight, outputs, targets)
    if targets.is_floating_point() and targets.shape == outputs.shape:
        total = F.cross_entropy(
            outputs, targets.to(outputs.dtype), reduction="sum", label_smoothing=label_smoothing
        )
        return total, float(outputs.numel() // outputs.shape[1])
    logits, labels = class_last(outputs, targets, "cross_entropy")
    count = _counted(labels, logits.shape[-1], ignore_index, "cross_entropy")
    total = F.cross_entropy(
        logits,
        labels.long(),
        ignore_index=ignore_index,
        reduction="sum",
        label_smoothing=label_smoothing,
        weight=weights_C,
    )
    if weights_C is not None:
        count = float(weights_C[labels[labels != ignore_index].long()].sum())
    return total, count


def nll(outputs: Tensor, targets: Tensor, ignore_index: int = -100) -> tuple[Tensor, float]:
    """-outputs[target], for outputs that are log-probabilities."""
    log_p, labels = class_last(outputs, targets, "nll")
    count = _counted(labels, log_p.shape[-1], ignore_index, "nll")
    total = F.nll_loss(log_p, labels.long(), ignore_index=ignore_index, reduction="sum")
    return total, count


def mse(outputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """(output - target)² over all elements."""
    return F.mse_loss(outputs, aligned(outputs, targets, "mse"), reduction="sum"), float(
        outputs.numel()
    )


def l1(outputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """|output - target| over all elements."""
    return F.l1_loss(outputs, aligned(outputs, targets, "l1"), reduction="sum"), float(
        outputs.numel()
    )


def huber(outputs: Tensor, targets: Tensor, delta: float = 1.0) -> tuple[Tensor, float]:
    """Quadratic within ``delta`` of the target, linear beyond, over all elements."""
    same = aligned(outputs, targets, "huber")
    return F.huber_loss(outputs, same, reduction="sum", delta=delta), float(outputs.numel())


def bce_with_logits(outputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """Binary cross-entropy of sigmoid(output) over all elements."""
    same = aligned(outputs, targets, "bce_with_logits")
    total = F.binary_cross_entropy_with_logits(outputs, same, reduction="sum")
    return total, float(outputs.numel())


def token_cross_entropy(
    outputs: Tensor, targets: Tensor, ignore_index: int = -100
) -> tuple[Tensor, float]:
    """`cross_entropy` of logits (N, L, C) and labels (N, L), also where the length L happens to be C."""
    return cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index)


def contrastive(outputs: Tensor, targets: Tensor, scale: float = 20.0) -> tuple[Tensor, float]:
    """In-batch contrastive loss of embeddings (2P, D): -log softmax over the other pairs of scale · cosine.

    The first of two samples with one label is the anchor, the second its positive (van den Oord et al. 2018). A batch
    cannot be cut: every sample's loss depends on the others.
    """
    if len(outputs) % 2 or not bool((targets[0::2] == targets[1::2]).all()):
        raise DataError(
            "contrastive needs pairs: two samples in a row with the same label",
            "give lines in pairs, an even number of them",
        )
    unit = F.normalize(outputs, dim=1)
    scores = scale * unit[0::2] @ unit[1::2].T
    pairs = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores, pairs, reduction="sum"), float(len(scores))


WHOLE_BATCHES = ("contrastive",)
"""Losses of which a slice of a batch is another loss."""

NAMED: dict[str, Callable[..., tuple[Tensor, float]]] = {
    f.__name__: f
    for f in (
        cross_entropy,
        mse,
        l1,
        huber,
        bce_with_logits,
        nll,
        token_cross_entropy,
        contrastive,
    )
}
LOSSES = (*NAMED, "model", "output")


def loss_terms(name: str | Callable[..., Any], arguments: Mapping[str, Any]) -> LossTerms:
    """The loss that ``--loss`` names, or is given, as a function of model and batch.

    Batches are ``(arguments, keywords, targets)`` as made by `target.batches.arrange`. With ``output``
    the model returns its loss, a mean over the samples. A ``module:function`` takes (outputs, targets)
    and returns a mean, a tensor of terms, or (sum, count); a class of modules (``torch.nn:CrossEntropyLoss``) is made
    with the arguments.

    Raises:
        LossError: there is no such loss, or it does not take these arguments.
    """
    if name == "output":
        return _output_loss
    if name == "model":
        raise LossError(
            "--loss model is the own loss of a Hugging Face directory, and this is none",
            "use --loss output where the network returns its loss, or a named loss",
        )
    if not isinstance(name, str):
        function: Callable[..., Any] = name
        named = name if hasattr(name, "__qualname__") else type(name)
        name = f"{named.__module__}:{named.__qualname__}"
    elif name in NAMED:
        function = NAMED[name]
    elif is_reference(name):
        function = resolve(name, "--loss", LossError)
    else:
        raise LossError(
            f"there is no loss {name!r}.{did_you_mean(name, LOSSES)}",
            f"named losses: {', '.join(LOSSES)}; or module:function",
        )
    try:
        if inspect.isclass(function) and issubclass(function, nn.Module):
            function, arguments = function(**arguments), {}
        inspect.signature(function).bind(None, None, **arguments)
    except TypeError as error:
        raise LossError(
            f"{name} does not take {dict(arguments)}: {error}", "check --loss-arg"
        ) from None

    return OutputLoss(name, function, arguments)


@dataclass(frozen=True)
class OutputLoss:
    """A loss of (outputs, targets), with the model's call in front of it; see `SplitLoss`."""

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]

    def __call__(self, model: nn.Module, data: Any) -> tuple[Tensor, float]:
        """(sum of the loss terms, how many)."""
        return self.of_outputs(self.outputs(model, data), data)

    def outputs(self, model: nn.Module, data: Any) -> Tensor:
        """The model's main output."""
        positional, keywords, targets = data
        if targets is None:
            raise DataError(
                f"the loss {self.name} needs targets, and the batches have none",
                "a file holds inputs and targets, e.g. np.savez('data.npz', x=x, y=y), and --target-key names these; "
                f"of Python objects, {ONE_OR_MORE}",
            )
        if isinstance(targets, Mapping):
            raise DataError(
                f"the loss {self.name} takes one kind of targets, and the batches have {some(targets)}",
                "name one by --target-key, or drop --loss: the model's own takes them all",
            )
        return main_output(call_model(model, positional, keywords))

    def of_outputs(self, outputs: Tensor, data: Any) -> tuple[Tensor, float]:
        """(sum of the loss terms, how many) for these outputs."""
        function = self.function
        if isinstance(function, nn.Module):
            # Its buffers (class weights) follow the network's device and dtype.
            function = copy.deepcopy(function).to(outputs.device, outputs.dtype)
        result = function(outputs, data[2], **self.arguments)
        if self.name in NAMED:
            return result[0], float(result[1])
        return as_terms(result, outputs.shape[0] if outputs.dim() else 1, self.name)

    def targets(self, data: Any) -> Any:
        """What the outputs are compared with."""
        return data[2]


def objective_terms(reference: str, mean_seen: Callable[[], None] = lambda: None) -> LossTerms:
    """``--objective``: a function (model, batch) -> mean loss, which counts as often as the batch has samples, or (sum,
    count); ``mean_seen`` is called where it is a mean."""
    return terms_of(resolve(reference, "--objective", LossError), reference, mean_seen)


def terms_of(
    function: Callable[..., Any], reference: str, mean_seen: Callable[[], None] = lambda: None
) -> LossTerms:
    """The same for a function at hand."""

    def terms(model: nn.Module, data: Any) -> tuple[Tensor, float]:
        result = guarded(reference, function, model, fresh(data))
        if isinstance(result, Tensor) and result.numel() == 1:
            mean_seen()
        return as_terms(result, samples_of(data) or 1, reference)

    return terms


def _is_count(value: Any) -> bool:
    """Whether this says how many loss terms there are: a whole number of at least one."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 and not value.is_complex() else None
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 1
        and value == int(value)
    )


def as_terms(result: Any, samples: int, name: str) -> tuple[Tensor, float]:
    """A mean, a tensor of terms, or (sum, count) -> (sum, count)."""
    if isinstance(result, tuple) and result and isinstance(result[0], Tensor):
        if len(result) == 2 and _is_count(result[1]):
            return result[0], float(result[1])
        # (loss, outputs) or (loss, accuracy), as training code returns them.
        result = result[0]
    if not isinstance(result, Tensor):
        raise LossError(
            f"{name} returned {type(result).__name__}, not a tensor",
            "return the mean loss, or (sum, count)",
        )
    if result.numel() == 1:
        return result.reshape(()) * samples, float(samples)
    return result.sum(), float(result.numel())


def _output_loss(model: nn.Module, data: Any) -> tuple[Tensor, float]:
    positional, keywords, targets = data
    if targets is not None:
        keywords = {**keywords, "labels": targets} if keywords else keywords
        positional = positional if keywords else (*positional, targets)
    output = call_model(model, positional, keywords)
    loss = getattr(output, "loss", None)
    if loss is None:
        loss = (
            output["loss"]
            if isinstance(output, Mapping) and "loss" in output
            else main_output(output)
        )
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise LossError(
            "--loss output needs a model that returns its scalar loss", "use a named loss"
        )
    inputs = [t for t in (*positional, *keywords.values()) if isinstance(t, Tensor)]
    return as_terms(loss, inputs[0].shape[0] if inputs and inputs[0].dim() else 1, "output")
