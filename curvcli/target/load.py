"""A `TargetSpec` -> the objects it names, each made when it is first asked for."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curvcli.device import resolve_device, set_precision, supports
from curvcli.errors import CheckpointError, DataError, LossError, ModelError, UsageError
from curvcli.objective import Batch, LossTerms, Objective, move
from curvcli.target.batches import arrange, as_batch, fingerprint, read_batches
from curvcli.target.checkpoint import Checkpoint, open_checkpoint
from curvcli.target.loss import loss_terms, objective_terms
from curvcli.target.model import build_model, compute_dtype, load_weights
from curvcli.target.settle import Signature, read_settled, signature
from curvcli.target.spec import TargetSpec


class Target:
    """What is being inspected: checkpoint, model, batches and loss.

    Args:
        spec: the settings.
        notes: receives a sentence for everything that was switched or skipped.
    """

    def __init__(self, spec: TargetSpec, notes: list[str] | None = None) -> None:
        self.spec = spec
        self.notes: list[str] = notes if notes is not None else []
        self._signature: Signature = ()
        self.accept_nonfinite = False
        """Whether NaN and Inf in weights, data and loss are let through to the objective."""

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The file of weights, opened; None where the factory brings its own."""
        if self.spec.checkpoint is None:
            return None
        path = Path(self.spec.checkpoint)
        checkpoint = read_settled(path, lambda: open_checkpoint(path, self.spec.unsafe_pickle))
        self._signature = signature(path)
        self.notes.extend(checkpoint.notes)
        return checkpoint

    @cached_property
    def device(self) -> torch.device:
        """Where everything is computed."""
        set_precision(self.spec.tf32)
        return resolve_device(self.spec.device)

    @cached_property
    def model(self) -> nn.Module:
        """The network with the checkpoint's weights, on its device and in its dtype."""
        if self.spec.model is None:
            raise ModelError(
                "a checkpoint holds weights, not the network they belong to"
                if self.spec.checkpoint
                else "nothing to inspect: neither a checkpoint nor a model is given",
                "name the network by --model file.py:attribute, or give a target file (.toml)",
            )
        checkpoint = self.checkpoint
        torch.manual_seed(self.spec.seed)
        model = build_model(self.spec.model, self.spec.model_args)
        if checkpoint is not None:
            self.notes.extend(load_weights(model, checkpoint, self.spec.allow_partial))
            self.check_unchanged()
        dtype, note = compute_dtype(model, checkpoint, self.spec.dtype)
        if note:
            self.notes.append(note)
        if not supports(self.device, dtype):
            raise UsageError(
                f"{self.device.type} does not compute in {dtype}", "pass --dtype float32"
            )
        return model.to(device=self.device, dtype=dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the model."""
        return next(
            (p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32
        )

    def share_data(self, other: "Target") -> None:
        """Read no data, but take that of another target whose settings of data are the same."""
        names = ("data", "batch_size", "max_batches")
        if all(getattr(self.spec, n) == getattr(other.spec, n) for n in names) and self.spec.data:
            self.__dict__["_raw_batches"] = other._raw_batches

    @cached_property
    def _raw_batches(self) -> list[Any]:
        if self.spec.data is None:
            raise DataError(
                "no data is given",
                "name it by --data (.npz, .safetensors, .pt or module:attribute)",
            )
        return read_batches(
            self.spec.data,
            batch_size=self.spec.batch_size,
            max_batches=self.spec.max_batches,
            unsafe_pickle=self.spec.unsafe_pickle,
        )

    @cached_property
    def batches(self) -> list[Batch]:
        """Frozen batches on the device, in the form that the loss takes."""
        if self.spec.objective is None:
            return self.model_batches
        return [
            as_batch(move(raw, self.device, self.dtype), opaque=True) for raw in self._raw_batches
        ]

    @cached_property
    def model_batches(self) -> list[Batch]:
        """The same data as (arguments, keywords, targets or None) of the model, whatever the loss."""
        arranged = (
            arrange(raw, self.spec.input_key, self.spec.target_key) for raw in self._raw_batches
        )
        return [as_batch(move(data, self.device, self.dtype), opaque=False) for data in arranged]

    @cached_property
    def terms(self) -> LossTerms:
        """The loss as a function of model and batch."""
        if self.spec.objective is not None:
            return objective_terms(self.spec.objective)
        if self.spec.loss is None:
            raise LossError(
                "no loss is given",
                "name it by --loss (cross_entropy, mse, …) or give an --objective file.py:function",
            )
        return loss_terms(self.spec.loss, self.spec.loss_args)

    @cached_property
    def objective(self) -> Objective:
        """L(θ) over the batches."""
        model = self.model
        terms = self.terms
        return Objective(
            model,
            self.batches,
            terms,
            select=self.spec.params,
            weight_decay=self.spec.weight_decay,
            train_mode=self.spec.train_mode,
            accept_nonfinite=self.accept_nonfinite,
            notes=self.notes,
        )

    @cached_property
    def checkpoint_sha256(self) -> str | None:
        """Of the file of weights."""
        found = self.checkpoint.sha256() if self.checkpoint else None
        self.check_unchanged()
        return found

    def check_unchanged(self) -> None:
        """Whether the file of weights is still the one that was opened.

        Raises:
            CheckpointError: it changed in the meantime, so that what was read may be of two minds.
        """
        path = Path(self.spec.checkpoint or "")
        if self.checkpoint is not None and signature(path) != self._signature:
            raise CheckpointError(
                f"{path.name} changed while it was read: it is still being written",
                "wait until it is complete; write checkpoints under another name and rename them",
            )

    @cached_property
    def data_sha256(self) -> str | None:
        """Of the batches' tensors, as they were read."""
        return fingerprint(self._raw_batches) if self.spec.data else None

    def _samples(self) -> int | None:
        """Samples in the batches, if they have been read."""
        batches: list[Batch] | None = self.__dict__.get("model_batches")
        return sum(batch.size for batch in batches) if batches else None

    def describe(self) -> Mapping[str, Any]:
        """What is known of the target by now, without loading anything more."""
        known = self.__dict__
        objective: Objective | None = known.get("objective")
        return {
            "checkpoint": self.spec.checkpoint,
            "checkpoint_sha256": known.get("checkpoint_sha256"),
            "model": self.spec.model,
            "data": self.spec.data,
            "data_sha256": known.get("data_sha256"),
            "samples": objective.samples if objective else self._samples(),
            "loss_terms": objective.weight if objective else None,
            "loss": self.spec.objective or self.spec.loss,
            "mode": "train" if self.spec.train_mode else "eval",
            "dtype": str(self.dtype).removeprefix("torch.") if "model" in known else None,
            "device": str(known["device"]) if "device" in known else None,
            "seed": self.spec.seed,
        }
