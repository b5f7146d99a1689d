"""A `TargetSpec` -> the objects it names, each made when it is first asked for."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curvcli.errors import DataError, LossError, ModelError, UsageError
from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.loading.checkpoints.checkpoint import Checkpoint
from curvcli.loading.data.batches import (
    arrange,
    as_batch,
    by_position,
    fingerprint,
    names_of,
    read_batches,
    unpacked,
)
from curvcli.loading.data.counts import check_sizes, check_targets
from curvcli.loading.data.pairs import belonging
from curvcli.loading.data.readers import readers_of
from curvcli.loading.data.tabular import is_table
from curvcli.loading.data.text import is_text
from curvcli.loading.loss import WHOLE_BATCHES, OutputLoss, loss_terms, objective_terms
from curvcli.loading.models.complex import cast_model, with_real_parameters
from curvcli.loading.models.divided import Division
from curvcli.loading.models.forms import take_best_form
from curvcli.loading.models.forward import Forward, forward_of
from curvcli.loading.models.guess import PlainNetwork
from curvcli.loading.models.huggingface import Directory, is_directory
from curvcli.loading.models.model import (
    build_model,
    compute_dtype,
    load_weights,
    settle_lazy,
    takes_grey,
)
from curvcli.loading.models.own_loss import OWN, Learnt, learn, next_tokens
from curvcli.loading.processes import local_rank
from curvcli.loading.spec import TargetSpec
from curvcli.loading.weights import Weights
from curvcli.machine.containers import move, samples_of
from curvcli.machine.device import check_supports, give_back_freed_memory, resolve_device
from curvcli.machine.precision import device_notes, set_precision
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective
from curvcli.objective.objective import Objective
from curvcli.objective.terms import LossTerms


class Target:
    """What is being inspected: checkpoint, model, batches and loss.

    Args:
        spec: the settings.
        notes: receives a sentence for everything that was switched or skipped.
        stop: gives a reason to end the reading of data, or None.
        ranks: processes that share the data out.
    """

    def __init__(
        self,
        spec: TargetSpec,
        notes: list[str] | None = None,
        stop: Callable[[], object] = lambda: None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.spec = spec
        self.stop, self.ranks = stop, ranks
        self.notes: list[str] = notes if notes is not None else []
        self.weights = Weights(spec, self.notes)
        self._building = False
        self.made: Objective | None = None
        self.wanted: int | None = None
        """Eigenpairs that will be asked for, by a question that can work on divided weights."""
        self._division = Division(spec, ranks, self.notes)
        self.guess: str | None = None
        """What is assumed of a network that is recognised by its shapes."""

    def again(self) -> "Target":
        """The same settings, nothing loaded."""
        return Target(self.spec, [], self.stop, self.ranks)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The file of weights, opened; None where the factory brings its own."""
        return self.weights.checkpoint

    @cached_property
    def directory(self) -> Directory | None:
        """The Hugging Face directory, where that is what the checkpoint is."""
        path, model = self.spec.checkpoint, self.spec.model
        base = model if model is not None and Path(model).is_dir() else None
        if path is None or not is_directory(Path(path)) or model != base:
            return None
        return Directory(Path(path), base, self.spec.trust_remote_code)

    @property
    def opaque(self) -> bool:
        """Whether batches are handed to an objective as they are."""
        return self.spec.objective is not None

    @property
    def loss(self) -> str | None:
        """The loss that is named, or that a directory implies."""
        return self.loss_with(self.directory)

    def loss_with(self, directory: Directory | None) -> str | None:
        if self.spec.loss or directory is None:
            return self.spec.loss
        return directory.loss(self.spec.data is not None and is_text(self.spec.data))

    @property
    def _own(self) -> bool:
        """Whether the loss is that which a Hugging Face model computes itself."""
        sentences = self.directory is None or self.directory.sentences
        return not self.opaque and not sentences and self.loss in OWN

    @cached_property
    def _forward(self) -> Forward | None:
        """The names that everything is called by; None where the model takes its inputs by position."""
        if self.directory is None:
            return None
        return forward_of(self.model, self.directory.task == "causal")

    @cached_property
    def _learnt(self) -> Learnt | None:
        """The model's own loss, where that is the loss."""
        if not self._own or self._forward is None:
            return None
        owner = self._forward.owner
        self.notes.append(f"the loss is the model's own ({owner}.loss)")
        learnt = learn(self.model, self.model_batches, self._forward)
        if not learnt.additive and any(b.splittable and b.size > 1 for b in self.model_batches):
            self.notes.append(
                f"{owner}.loss of a batch is not the mean over its samples: batches are evaluated whole"
            )
        return learnt

    @cached_property
    def device(self) -> torch.device:
        """Where everything is computed."""
        if self.spec.memory is not None or self.spec.shard:
            give_back_freed_memory()
        device = resolve_device(self.spec.device)
        if self.ranks.size > 1 and device.type == "cuda" and ":" not in self.spec.device:
            device = torch.device("cuda", local_rank() % torch.cuda.device_count())
        self.notes.extend(device_notes(device, self.spec.tf32))
        return device

    @cached_property
    def model(self) -> nn.Module:
        """The network with the checkpoint's weights, on its device and in its dtype."""
        self._building = True
        model = self._build()
        self.weights.check_unchanged()
        self.notes.extend(with_real_parameters(model))
        dtype, note = compute_dtype(model, self.checkpoint, self.spec.dtype)
        self.notes.extend([note] if note else [])
        check_supports(self.device, dtype)
        set_precision(self.spec.tf32)  # what was imported may have set its own
        self._division.divide(model, dtype)
        return cast_model(model, self.device, dtype, self.spec.offload)

    def _build(self) -> nn.Module:
        """The network with its weights, wherever they come from."""
        directory, checkpoint = self.directory, self.checkpoint
        if directory is not None and self.spec.weights is not None:
            raise UsageError(
                "--weights chooses among several sets of weights, and a Hugging Face directory has one",
                "drop it, or name the file of weights and its --model",
            )
        torch.manual_seed(self.spec.seed)
        if checkpoint is not None:
            self._division.settle(checkpoint, self.device, self.wanted)
        if directory is not None:
            divided = self._division.unfilled(directory, checkpoint)
            model, notes = divided or directory.load(self.spec.allow_partial)
            self.notes.extend(notes)
            return model
        if self.spec.model is not None:
            if self._division.chosen and checkpoint is not None and self.spec.model != "auto":
                return self._division.built(
                    partial(build_model, self.spec.model, self.spec.model_args), checkpoint
                )
            model = build_model(self.spec.model, self.spec.model_args, checkpoint)
            self.notes.extend(settle_lazy(model, lambda: self._arranged(self._raw_batches[0])))
            if checkpoint is not None:
                self.notes.extend(load_weights(model, checkpoint, self.spec.allow_partial))
            if isinstance(model, PlainNetwork):
                tried = self.spec.data is not None and self.loss is not None
                data = self._arranged(self._raw_batches[0]) if tried else None
                self.guess = take_best_form(model, self.spec, data)
            return model
        if checkpoint is not None and checkpoint.program is not None:
            place = getattr(checkpoint.program, "placed", checkpoint.program.to)
            placed: nn.Module = place(self.device)
            return placed
        raise ModelError(
            "a checkpoint holds weights, not the network they belong to",
            "name it by --model file.py:Class; --model auto builds plain networks from the shapes",
        )

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
                "name it by --data: a file, a folder of images, or module:attribute",
            )
        read = read_batches(
            self.spec.data,
            batch_size=self.spec.batch_size,
            max_batches=self.spec.max_batches,
            unsafe_pickle=self.spec.unsafe_pickle,
            readers=readers_of(self.spec, self.directory, self.notes, self._takes_grey),
            memory=self.spec.memory_bytes,
            stop=self.stop,
            opaque=self.spec.objective is not None,
        )
        if self.stop() is not None:
            taken = f"{len(read)} batches are" if len(read) > 1 else "one batch is"
            self.notes.append(f"half of the time went by while data was read: {taken} taken")
        return read

    def _takes_grey(self, shape: tuple[int, int, int]) -> bool:
        """See `takes_grey`; lazy layers take their shapes from the images, whatever these are."""
        building = self._building and "model" not in self.__dict__
        return not building and takes_grey(self.model, shape, self._arranged)

    @cached_property
    def batches(self) -> list[Batch]:
        """Frozen batches on the device, in the form that the loss takes."""
        if not self.opaque:
            cut = self._learnt is None or self._learnt.additive
            made = self.model_batches
            return made if cut else [dataclasses.replace(b, splittable=False) for b in made]
        return [
            as_batch(move(raw, self.device, self.dtype), opaque=True) for raw in self._raw_batches
        ]

    def _weigh_means(self) -> None:
        """The objective returned a mean: where batches differ in size it is said how these are weighted."""
        told = (
            "the batches have different numbers of samples: a mean that the objective returns is weighted by them "
            "(by one where they cannot be told); it can return (sum, count) instead"
        )
        if told not in self.notes and len({samples_of(raw) for raw in self._raw_batches}) > 1:
            self.notes.append(told)

    @cached_property
    def model_batches(self) -> list[Batch]:
        """The same data as (arguments, keywords, targets or None) of the model, whatever the loss."""
        arranged = []
        for raw in self._raw_batches:
            positional, keywords, targets = self._arranged(raw)
            positional, keywords = by_position(self.model.forward, positional, keywords)
            arranged.append((unpacked(self.model.forward, positional), keywords, targets))
        set_precision(self.spec.tf32)  # what was imported may have set its own
        made = [
            dataclasses.replace(
                as_batch(move(data, self.device, self.dtype), opaque=False),
                names=names_of(raw, data[0]),
            )
            for raw, data in zip(self._raw_batches, arranged, strict=True)
        ]
        if self._takes_whole_batches(made):
            return [dataclasses.replace(batch, splittable=False) for batch in made]
        return made

    def _arranged(self, raw: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        inputs, target = self.spec.input_key, self.spec.target_key
        if self.spec.data is not None and is_table(self.spec.data):
            inputs, target = [], None
        elif isinstance(raw, Mapping):
            inputs, target = belonging(map(str, raw), inputs, target)
        if self._forward is None:
            return arrange(raw, inputs, target)
        none, keywords, targets = self._forward.arrange(raw, inputs, target)
        if targets is None and (tokens := self._forward.own_tokens(keywords)) is not None:
            targets = tokens if self._own else next_tokens(tokens)  # its own loss shifts them
        return none, keywords, targets

    def _takes_whole_batches(self, made: list[Batch]) -> bool:
        """Whether a slice of a batch is another loss, or nothing that the program takes."""
        program = self.checkpoint.program if self.checkpoint and self.spec.model is None else None
        fixed = getattr(program, "fixed_samples", None)
        check_sizes(made, fixed)
        return fixed is not None or (not self.opaque and self.loss in WHOLE_BATCHES)

    @cached_property
    def terms(self) -> LossTerms:
        """The loss as a function of model and batch."""
        if self.spec.objective is not None:
            return objective_terms(self.spec.objective, self._weigh_means)
        if self._learnt is not None:
            return self._learnt.loss
        if self.loss is None:
            raise LossError(
                "no loss is given",
                "name it by --loss (cross_entropy, mse, …) or give an --objective file.py:function",
            )
        return loss_terms(self.loss, self.spec.loss_args)

    def make_objective(self, accept_nonfinite: bool) -> Objective:
        """L(θ) over the batches; NaN and Inf are no error where they are accepted."""
        model, terms, spec = self.model, self.terms, self.spec
        if isinstance(terms, OutputLoss):
            for raw, batch in zip(self._raw_batches, self.batches, strict=True):
                check_targets(raw, batch.data[2], terms.name)
        if spec.plain:
            self.notes.append("plain: layers are evaluated by torch's own operations only")
        self.made = make_objective(
            model,
            self.batches,
            terms,
            weight_decay=spec.weight_decay,
            train_mode=spec.train_mode,
            accept_nonfinite=accept_nonfinite,
            plain=spec.plain,
            tf32=spec.tf32,
            memory=spec.memory_bytes,
            offload=spec.offload,
            notes=self.notes,
            **self._division.options,
        )
        return self.made

    def called(self) -> Mapping[str, Any]:
        """Names of parts that the settings do not have."""
        return {}

    @cached_property
    def data_sha256(self) -> str | None:
        """Of the batches' tensors, as they were read."""
        return fingerprint(self._raw_batches) if self.spec.data else None
