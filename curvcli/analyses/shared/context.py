"""What an analysis works with: the target, and where its notes, findings and progress go."""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from curvcli.errors import UsageError
from curvcli.loading.spec import TargetSpec, make_spec, read_pyproject, read_target_file
from curvcli.report.data import CostInfo, Finding, Severity, TargetInfo

if TYPE_CHECKING:
    import torch

    from curvcli.loading.target import Target
    from curvcli.objective.objective import Cost, Objective

Reason = Literal["timeout", "interrupted"]


class Stage(NamedTuple):
    """How far a run has come."""

    what: str
    done: int
    expected: int | None
    detail: str = ""


class Context:
    """The target of one run, and what is said about it on the way.

    Args:
        spec: what to inspect; or
        objective: an objective made in Python.
        progress: told how far the run has come.
        interrupted: asked often; True ends the run with what is known so far.
        members: contexts of the targets, for an analysis of several.
        tables: options of analyses that the target file sets, by command.
        name: the target as it was given.
        deadline: seconds after which the run ends, whatever an analysis asks for.
        item: told of each part of the answer as it is known.
    """

    def __init__(
        self,
        spec: TargetSpec | None = None,
        *,
        objective: "Objective | None" = None,
        progress: Callable[[Stage], None] = lambda _: None,
        interrupted: Callable[[], bool] = lambda: False,
        members: "Sequence[Context]" = (),
        tables: dict[str, dict[str, Any]] | None = None,
        name: str | None = None,
        deadline: float | None = None,
        item: Callable[[Any], None] = lambda _: None,
    ) -> None:
        self.spec = spec or TargetSpec()
        self.members = members
        self.tables = tables or {}
        self.name = name or self.spec.checkpoint or self.spec.model or "target"
        self.item = item
        self.interrupted = interrupted
        self.notes: list[str] = objective.notes if objective is not None else []
        self.findings: list[Finding] = []
        self.progress = progress
        self._objective = objective
        self._work: tuple[Cost, torch.device] | None = None
        self._target: Target | None = None
        self._started = time.monotonic()
        self._latest = None if deadline is None else self._started + deadline
        self._deadline: float | None = self._latest
        self.incomplete = False
        """Whether the answer is only a part of what was asked (exit code 3)."""
        self.exit_code: int | None = None
        """Set by an analysis that judges: how the program ends."""
        self.vectors_KN: torch.Tensor | None = None
        """Eigenvectors that an analysis found, top ones first, for one that builds on it."""
        self.accept_nonfinite = False
        """Set by an analysis that reports NaN and Inf instead of refusing them."""

    @property
    def target(self) -> "Target":
        """Checkpoint, model, data and loss; each is loaded when first asked for."""
        if self._target is None:
            from curvcli.loading.target import Target

            self._target = Target(self.spec, self.notes)
        return self._target

    @property
    def objective(self) -> "Objective":
        """L(θ) over the batches."""
        if self._objective is None:
            self.target.accept_nonfinite = self.accept_nonfinite
            self._objective = self.target.objective
            # Named in every answer, so computed while the files are still the ones that were read.
            _ = self.target.checkpoint_sha256, self.target.data_sha256
        return self._objective

    def limit_time(self, seconds: float | None) -> None:
        """End the run with what is known ``seconds`` after it began."""
        asked = [] if seconds is None else [self._started + seconds]
        self._deadline = min(
            [*asked, *([] if self._latest is None else [self._latest])], default=None
        )

    def stop(self) -> Reason | None:
        """Why to end the run now, if there is a reason."""
        if self.interrupted():
            return "interrupted"
        if self._deadline is not None and time.monotonic() > self._deadline:
            return "timeout"
        return None

    def find(
        self,
        rule: str,
        severity: Severity,
        subject: str,
        message: str,
        *,
        value: float | None = None,
        threshold: float | None = None,
    ) -> None:
        """Add a finding."""
        self.findings.append(Finding(rule, severity, subject, value, threshold, message))

    def count(self, device: "torch.device") -> "Cost":
        """Where an analysis without an objective counts its work."""
        from curvcli.objective.objective import Cost

        if self._work is None:
            self._work = Cost(), device
        return self._work[0]

    def release(self) -> None:
        """Forget the model and the data; what was counted and noted stays."""
        if self._objective is not None:
            self._work = self._objective.cost, self._objective.device
        self._objective = self._target = self.vectors_KN = None

    def fingerprint(self) -> str:
        """SHA-256 of everything that determines L and θ."""
        objective = self.objective
        digest = hashlib.sha256()
        for name, parameter in zip(objective.names, objective.parameters, strict=True):
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
            digest.update(
                parameter.detach().cpu().contiguous().view(-1).view(_bytes()).numpy().tobytes()
            )
        described = {k: v for k, v in self.target.describe().items() if k != "device"}
        digest.update(
            repr((sorted(described.items()), objective.loss, objective.weight_decay)).encode()
        )
        return digest.hexdigest()

    def target_info(self) -> TargetInfo | None:
        """What is known of the target by now."""
        if self.members or (self._target is None and self.spec == TargetSpec()):
            return None
        return TargetInfo(**self.target.describe())

    def cost_info(self) -> CostInfo:
        """Work done by now."""
        work = [self._work] if self._work is not None else []
        members = [member.cost_info() for member in self.members]
        if self._objective is not None:
            work.append((self._objective.cost, self._objective.device))
        peak = None
        if work:
            from curvcli.machine.device import peak_memory

            peak = peak_memory(work[0][1])
        return CostInfo(
            sum(cost.matvecs for cost, _ in work) + sum(m.matvecs for m in members),
            sum(cost.gradients for cost, _ in work) + sum(m.gradients for m in members),
            round(time.monotonic() - self._started, 3),
            max((m.peak_memory for m in members if m.peak_memory is not None), default=peak),
        )


def _bytes() -> Any:
    import torch

    return torch.uint8


def resolve_target(
    argument: str | None,
    flags: dict[str, Any],
    commands: tuple[str, ...],
    folder: Path | None = None,
) -> tuple[TargetSpec, dict[str, dict[str, Any]]]:
    """Merge pyproject, target file and flags into settings and the options of single analyses.

    Args:
        argument: a checkpoint, or a ``.toml`` target file, or None.
        flags: settings given on the command line; they override the target file, which overrides
            ``[tool.curvcli]`` of the pyproject in ``folder``.
        commands: names of analyses, whose tables a target file may have.
        folder: the working directory.
    """
    base = read_pyproject(folder or Path.cwd(), commands)
    layers, options = [base.settings], dict(base.options)
    if argument is not None and Path(argument).suffix == ".toml":
        file = read_target_file(Path(argument), commands)
        layers.append(file.settings)
        for command, values in file.options.items():
            options[command] = {**options.get(command, {}), **values}
    elif argument is not None:
        layers.append({"checkpoint": argument})
    layers.append(flags)
    return make_spec(*layers), options


def parse_seconds(text: str | None) -> float | None:
    """``90``, ``90s``, ``5m`` or ``1h`` in seconds."""
    if text is None:
        return None
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number = text[:-1] if text[-1:] in units else text
    try:
        seconds = float(number) * units.get(text[-1:], 1.0)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{text!r} is not a duration", "write it like 90s, 5m or 1h")
    return seconds
