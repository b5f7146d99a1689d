"""The step that the saved state of Adam makes."""

from pathlib import Path

import torch
from torch import Tensor

from curvcli.analyses.shared.subject import Subject
from curvcli.errors import UsageError
from curvcli.linalg.vectors import double
from curvcli.loading.checkpoints.training import read_training, state_by_name

_HINT = "pass a file with the state_dict of Adam by --optimizer, or look along another direction"


def adam_step(subject: Subject, file: str | None) -> Tensor:
    """Δ = −lr m̂ / (√v̂ + ε), for AdamW with −lr wd θ, by the moments as they were saved (Kingma & Ba 2015).

    Raises:
        UsageError: there is no state of Adam.
    """
    path = file or subject.spec.checkpoint
    training = read_training(Path(path), subject.spec.unsafe_pickle) if path else None
    saved = training.optimizer if training else None
    if path is None or saved is None:
        raise UsageError(f"{path or 'the target'} holds no state of an optimizer", _HINT)
    if saved.kind not in ("adam", "adamw"):
        raise UsageError(f"the state in {path} is that of {saved.kind}, not of Adam", _HINT)
    objective = subject.objective
    shapes = {n: tuple(p.shape) for n, p in objective.model.named_parameters()}
    states = state_by_name(saved, shapes, Path(path), subject.notes)
    if states is None or saved.learning_rate is None:
        raise UsageError(
            f"the state in {path} has no moments: no step was made, or they were not saved", _HINT
        )
    parts = []
    for name, p in zip(objective.names, objective.parameters, strict=True):
        step_P = double(torch.zeros_like(p, requires_grad=False))
        if name in states:
            state = states[name]
            count = max(1.0, float(state.get("step", 1)))
            first, second = (state[k].to(step_P) for k in ("exp_avg", "exp_avg_sq"))
            second = state.get("max_exp_avg_sq", second).to(step_P)
            mean = first / (1 - saved.betas[0] ** count)
            square = second / (1 - saved.betas[1] ** count)
            step_P = -mean / (square.sqrt() + saved.eps)
        if saved.kind == "adamw":
            step_P = step_P - saved.weight_decay * p.detach().to(step_P)
        parts.append((saved.learning_rate * step_P).to(p))
    return objective.flatten(parts)
