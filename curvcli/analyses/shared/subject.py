"""What is inspected: the settings of a target, and the objects they name."""

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from curvcli.loading.described import described
from curvcli.loading.spec import TargetSpec
from curvcli.report.cost import CostInfo, ProcessesInfo
from curvcli.report.data import TargetInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from curvcli.analyses.shared.sanity import SanityInfo
    from curvcli.errors import CurvError
    from curvcli.linalg.ranks import Ranks
    from curvcli.loading.target import Target
    from curvcli.objective.objective import Cost, Objective


class Guess(NamedTuple):
    """What an earlier answer knows about the ends of the spectrum."""

    vector_N: "Tensor"
    seed: int
    """Of the random part beside it, which must not be the one that the earlier answer began with."""


class Subject:
    """A target, each part of which is loaded when it is first asked for.

    Args:
        spec: its settings; or
        objective: an objective made in Python.
        members: the targets, for a question that is asked of several.
        tables: options of questions that the target file sets, by command.
        name: the target as it was given.
        problem: why its settings cannot be used, of one among several.
        target: objects that are there already.
        file: the target file that the settings come from.
    """

    def __init__(
        self,
        spec: TargetSpec | None = None,
        *,
        objective: "Objective | None" = None,
        members: "Sequence[Subject]" = (),
        tables: dict[str, dict[str, Any]] | None = None,
        name: str | None = None,
        problem: "CurvError | None" = None,
        target: "Target | None" = None,
        file: str | None = None,
    ) -> None:
        self.problem, self.file = problem, file
        self.spec = spec or TargetSpec()
        self.members = members
        self.tables = tables or {}
        self.name = name or self.spec.checkpoint or self.spec.model or "target"
        made = objective or target
        self.notes: list[str] = made.notes if made is not None else []
        """What was switched, skipped or assumed while it was loaded."""
        self.guess: Guess | None = None
        """What Lanczos may start from."""
        self._objective = objective
        self._target, self.live = target, target is not None
        self._sanity: SanityInfo | None = None
        self._work: tuple[Cost, torch.device] | None = None
        self._stop: Callable[[], object] = lambda: None
        self._ranks: Ranks | None = None
        self._wanted: int | None = None

    @property
    def made(self) -> bool:
        """Whether it is made of objects in Python, or opened already: its settings are no longer asked for."""
        return self._objective is not None or self._target is not None

    def end_reading_when(self, stop: Callable[[], object]) -> None:
        """Data that goes on for ever, or for too long, ends at the batch where ``stop`` gives a reason."""
        self._stop = stop
        if self._target is not None:
            self._target.stop = stop
        for member in self.members:
            member.end_reading_when(stop)

    def share_among(self, ranks: "Ranks") -> None:
        """Share the data of its sums out among several processes."""
        self._ranks = ranks
        for member in self.members:
            member.share_among(ranks)

    @property
    def divided(self) -> bool:
        """Whether its weights are to be divided among processes, or have been."""
        return self.spec.shard or (self._objective is not None and self._objective.ranks.parted)

    def may_be_divided(self, wanted: int) -> None:
        """The question can work on divided weights, and asks for so many eigenpairs: they may be, if need be."""
        self._wanted = wanted

    def again(self, spec: TargetSpec | None = None) -> "Subject":
        """The same target, or one of these settings, of which nothing has been loaded."""
        other = Subject(
            spec or self.spec,
            name=self.name,
            target=self.target.again() if self.live and spec is None else None,
            file=self.file,
        )
        other._ranks = self._ranks
        return other

    def in_double(self) -> bool:
        """Whether what was loaded by now computes in float64."""
        if self.members:
            return any(member.in_double() for member in self.members)
        if self._objective is None:
            return self.spec.dtype == "float64"
        return str(self._objective.dtype) == "torch.float64"

    @property
    def has_data(self) -> bool:
        """Whether there is any, named or at hand."""
        return self.live or self.spec.data is not None

    @property
    def target(self) -> "Target":
        """Checkpoint, model, data and loss."""
        if self._target is None:
            from curvcli.linalg.ranks import ALONE
            from curvcli.loading.target import Target

            self._target = Target(self.spec, self.notes, self._stop, self._ranks or ALONE)
            self._target.wanted = self._wanted
        return self._target

    @property
    def objective(self) -> "Objective":
        """L(θ) over the batches.

        Raises:
            NonFiniteError: weights, data or loss contain NaN or Inf.
        """
        return self.load()

    def load(self, accept_nonfinite: bool = False) -> "Objective":
        """`objective`; NaN and Inf are no error where they are accepted."""
        if self._objective is None:
            self._objective = self.target.make_objective(accept_nonfinite)
            # Named in every answer, so computed while the files are still the ones that were read.
            _ = self.target.weights.sha256, self.target.data_sha256
        return self._objective

    def weights_in(self, path: str) -> "dict[str, Tensor]":
        """The parameters by name with the weights of another checkpoint; the model stays as it is.

        Raises:
            CheckpointError: it cannot be read; ModelError: it is of another model.
        """
        from pathlib import Path

        from msgspec.structs import replace

        from curvcli.linalg.ranks import ALONE
        from curvcli.loading.checkpoints.formats import open_checkpoint
        from curvcli.loading.models.model import load_weights
        from curvcli.loading.target import Target
        from curvcli.objective.network import copied

        if self.divided:  # each process reads its own part of the other file too
            spec = replace(self.spec, checkpoint=path, shard=True)
            other = Target(spec, self.notes, self._stop, self._ranks or ALONE).model
        else:
            other = copied(self.load(accept_nonfinite=True).model)
            checkpoint = open_checkpoint(Path(path), self.spec.unsafe_pickle, self.spec.weights)
            self.notes.extend(load_weights(other, checkpoint, self.spec.allow_partial))
        return {name: p.detach() for name, p in other.named_parameters()}

    def forward_pass(self) -> "SanityInfo":
        """What one pass over the data says, made when it is first asked for."""
        if self._sanity is None:
            from curvcli.analyses.shared.forward_pass import forward_pass

            self._sanity = forward_pass(self.load(accept_nonfinite=True), self.spec.params)
        return self._sanity

    def look(self) -> None:
        """Make the forward pass for the answer's head, if there is data and the pass has not been made."""
        if self._objective is None:
            return
        from curvcli.machine.memory import out_of_memory

        try:
            self.forward_pass()
        except Exception as error:  # an instrument of ours: the answer stands without it
            if not out_of_memory(error):
                told = " ".join(str(error).split())[:120]
                self.notes.append(
                    f"loss and accuracy of a forward pass are not shown: {type(error).__name__}: {told}"
                )

    def set_precision(self) -> None:
        """Compute in the precision that was asked for, also with what was loaded before."""
        from curvcli.machine.precision import set_precision

        made = self._objective
        set_precision(self.spec.tf32 if made is None else made.tf32)

    def count(self, device: "torch.device") -> "Cost":
        """Where a question that needs no objective counts its work."""
        from curvcli.objective.objective import Cost

        if self._work is None:
            self._work = Cost(), device
        return self._work[0]

    def release(self) -> None:
        """Forget the model and the data; what was counted and noted stays."""
        if self._objective is not None:
            self._work = self._objective.cost, self._objective.device
        self._objective = self._target = None

    def fingerprint(self) -> str:
        """SHA-256 of everything that determines L and θ."""
        import torch

        objective = self.objective
        digest = hashlib.sha256()
        for name, parameter in zip(objective.names, objective.parameters, strict=True):
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
            flat = parameter.detach().cpu().contiguous().view(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        told = {k: v for k, v in described(self.spec, self._target).items() if k != "device"}
        digest.update(repr((sorted(told.items()), objective.loss, objective.weight_decay)).encode())
        if not objective.ranks.parted:
            return digest.hexdigest()
        # Each process has seen its own weights.
        of_all = "".join(objective.ranks.collected([digest.hexdigest()]))
        return hashlib.sha256(of_all.encode()).hexdigest()

    def info(self) -> TargetInfo | None:
        """What is known of the target by now."""
        if self.members or (self._target is None and self.spec == TargetSpec()):
            return None
        fit = self._sanity.fit if self._sanity is not None else None
        return TargetInfo(**described(self.spec, self._target), fit=fit)

    def cost_info(self, seconds: float) -> CostInfo:
        """Work done by now, in a run that has taken ``seconds``."""
        work = [self._work] if self._work is not None else []
        members = [member.cost_info(seconds) for member in self.members]
        if self._objective is not None:
            work.append((self._objective.cost, self._objective.device))
        peak = None
        if work:
            from curvcli.machine.device import peak_memory

            peak = peak_memory(work[0][1])
        return CostInfo(
            sum(cost.matvecs for cost, _ in work) + sum(m.matvecs for m in members),
            sum(cost.gradients for cost, _ in work) + sum(m.gradients for m in members),
            round(seconds, 3),
            max((m.peak_memory for m in members if m.peak_memory is not None), default=peak),
            self._exchanged(),
        )

    def _exchanged(self) -> ProcessesInfo | None:
        """With the other processes of the run, if there are any."""
        if self._ranks is None:
            return None
        traffic = self._ranks.traffic
        return ProcessesInfo(self._ranks.size, traffic.messages, traffic.bytes)
