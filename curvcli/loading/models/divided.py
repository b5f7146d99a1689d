"""Weights read from a checkpoint by the process that has the share they belong to, and by no other."""

import math
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.errors import ModelError, UsageError
from curvcli.linalg.ranks import Group, Ranks
from curvcli.loading.checkpoints.checkpoint import Checkpoint
from curvcli.loading.models.huggingface import Directory
from curvcli.loading.models.model import computed_in, fit_weights, set_extra_states
from curvcli.loading.processes import local_size
from curvcli.loading.spec import TargetSpec
from curvcli.machine.device import free_memory, give_back_freed_memory
from curvcli.machine.memory import check_fits, human, room
from curvcli.machine.plan import least_vectors
from curvcli.objective.network import choose_parameters
from curvcli.objective.sharding.shards import Read, Shards, divide, without_weights


class Division:
    """How a network is divided among the processes of a run, where that is asked for.

    Args:
        spec: the settings.
        ranks: the processes.
        notes: receives what was not literal.
    """

    def __init__(self, spec: TargetSpec, ranks: Ranks, notes: list[str]) -> None:
        self._spec, self._ranks, self._notes = spec, ranks, notes
        self._unread: Checkpoint | None = None
        self._needed = False
        self._shards: Shards | None = None

    @property
    def chosen(self) -> bool:
        """Whether it is divided."""
        return self._spec.shard or self._needed

    def settle(self, checkpoint: Checkpoint, device: torch.device, wanted: int | None) -> None:
        """Before weights are read: divide though that was not asked for, where it must be; and see that they fit.

        Args:
            checkpoint: whose sizes tell it.
            device: where it is computed.
            wanted: eigenpairs that will be asked for; None: the question needs the whole.

        Raises:
            MemoryLimitError: this process' weights do not fit.
        """
        if wanted is not None and self._ranks.size > 1 and checkpoint.program is None:
            self._needed = not self._spec.shard and self._must_be(checkpoint, device, wanted)
        stored = sum(t.bytes for t in checkpoint.tensors) // (
            self._ranks.size if self.chosen else 1
        )
        check_fits(stored, self._spec.memory_bytes, f"the network in {checkpoint.path.name}")

    def _must_be(self, checkpoint: Checkpoint, device: torch.device, wanted: int) -> bool:
        """Whether no process has room for the whole, and each for its share.

        Weights and the least vectors of a product are counted, as the plan of products will count them, not what the
        data takes. All processes come to the same, by the one with the least room.
        """
        ranks, spec = self._ranks, self._spec
        infos = [t for t in checkpoint.tensors if "float" in t.dtype or "complex" in t.dtype]
        dtype, _ = computed_in({t.dtype for t in infos}, spec.dtype)
        chosen = [t for t in infos if any(fnmatch(t.name, s) for s in spec.params)] or infos
        entries, n = (sum(math.prod(t.shape) for t in some) for some in (infos, chosen))
        whole = dtype.itemsize * (entries + n * least_vectors(wanted, n, spec.offload is not None))
        left = room(device, spec.memory_bytes)
        if device.type == "cpu":  # shared by the processes of this machine
            left = min(left, free_memory(device) // local_size(ranks.size))
        left = -ranks.largest(-left)
        must = whole // ranks.size <= left < whole
        if must:
            give_back_freed_memory()
            self._notes.append(
                f"weights and vectors are divided among the {ranks.size} processes (--shard): they take {human(whole)} "
                f"at the least, and one process has {human(left)}"
            )
        return must

    @property
    def options(self) -> dict[str, Any]:
        """Those of `make_objective` that hang on it."""
        if self._shards is None:
            return {"select": self._spec.params, "ranks": self._ranks}
        return self._shards.options

    def built(self, build: Callable[[], nn.Module], checkpoint: Checkpoint) -> nn.Module:
        """The network without its weights, which are read when it is divided; with them where it looks at them."""
        self._unread = checkpoint
        try:
            with without_weights():
                model = build()
        except ModelError:
            return build()
        return build() if any(buffer.is_meta for buffer in model.buffers()) else model

    def unfilled(
        self, directory: Directory, checkpoint: Checkpoint | None
    ) -> tuple[nn.Module, list[str]] | None:
        """The same of a Hugging Face directory, and notes; None where the library must load the weights."""
        found = directory.unfilled() if self.chosen else None
        if found is None or checkpoint is None:
            return None
        try:
            fit_weights(found[0], checkpoint)
        except ModelError:  # they are stored otherwise than the library computes with them
            return None
        self._unread = checkpoint
        return found

    def divide(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Leave this process its share of the weights, in the ``dtype`` that is computed in.

        Raises:
            UsageError: there is only one process.
        """
        if not self.chosen:
            return
        if not isinstance(self._ranks, Group):
            raise UsageError(
                "--shard divides the weights among several processes, and this is the only one",
                "start several: --ranks 2 on this machine, or torchrun",
            )
        _, _, left_out = choose_parameters(model, self._spec.params)
        self._notes.extend(left_out)
        # Buffers, which are whole everywhere, are cast afterwards.
        for p in model.parameters():
            p.data = p.data.to(dtype) if p.is_floating_point() else p.data
        if self._unread is None:
            self._shards = divide(model, self._ranks)
            return
        partial = self._spec.allow_partial
        self._shards, notes = load_divided(model, self._unread, self._ranks, partial)
        self._notes.extend(notes)


def load_divided(
    model: nn.Module, checkpoint: Checkpoint, ranks: Group, allow_partial: bool = False
) -> tuple[Shards, list[str]]:
    """Divide ``model``, whose weights may be on the meta device, and read this process' share; notes.

    Raises:
        ModelError: the checkpoint does not fit the model, holds float8 weights with scales, or lacks a weight.
    """
    fit = fit_weights(model, checkpoint, allow_partial)
    if fit.scales:
        raise ModelError(
            "float8 weights with scales are not divided among processes",
            "leave out --shard, or save the weights in bfloat16",
        )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for stored, name in fit.names.items():
            if name not in parameters:
                fit.tensors[stored].copy_(checkpoint[stored])
    set_extra_states(model, fit)
    return divide(model, ranks, _reader(parameters, fit.names, checkpoint)), fit.notes


def _reader(
    parameters: dict[str, nn.Parameter], names: dict[str, str], checkpoint: Checkpoint
) -> Read:
    """Reads parts of parameters by any of the names that each has in the model."""
    stored = {id(parameters[n]): s for s, n in names.items() if n in parameters}

    def read(name: str, first: int, last: int) -> Tensor:
        p = parameters[name]
        if id(p) not in stored:
            raise ModelError(
                f"the checkpoint has no {name!r}, and divided weights are only read, not drawn",
                "leave out --shard",
            )
        return checkpoint.part(stored[id(p)], first, last).to(p.dtype)

    return read
