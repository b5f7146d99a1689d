"""The questions as functions of live objects: a model, a loss and data, without files.

    import curvcli

    answer = curvcli.hessian(model, "cross_entropy", (x, y), top=3)
    print(answer.headline.sentence)

Every function takes the options of its command with underscores, and the settings of a target (``dtype``, ``device``,
``batch_size``, ``params``, ``weight_decay``, ``train_mode``, ``memory``, ``seed``, …). The model is copied: what it
holds stays as it is. In notebooks a line below the cell says how far a longer run has come.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from curvcli.analyses.registry import get
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.question import Question
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import CheckpointError, UsageError
from curvcli.loading.spec import TargetSpec
from curvcli.notebook import progress_line
from curvcli.report.data import Finding, Headline

if TYPE_CHECKING:
    from torch import nn

    from curvcli.analyses.backprop.result import BackpropResult
    from curvcli.analyses.check.result import CheckResult
    from curvcli.analyses.density.result import DensityResult
    from curvcli.analyses.gradients.result import GradientsResult
    from curvcli.analyses.hessian.result import HessianResult
    from curvcli.analyses.jacobian.result import JacobianResult
    from curvcli.analyses.landscape.result import LandscapeResult
    from curvcli.analyses.lr.result import LrResult
    from curvcli.analyses.saddle.result import SaddleResult
    from curvcli.analyses.sharpness.result import SharpnessResult
    from curvcli.analyses.step.result import StepResult
    from curvcli.analyses.taylor.result import TaylorResult
    from curvcli.analyses.trace.result import TraceResult
    from curvcli.operators.curvature.curvature import Curvature

R = TypeVar("R")
Loss = str | Callable[..., Any]

# What objects stand for.
_OBJECTS = ("checkpoint", "weights", "model", "model_args", "data", "loss", "objective")


def inspect(
    model: "nn.Module",
    loss: Loss | None = None,
    data: Any = None,
    *,
    objective: Callable[..., Any] | None = None,
    **settings: Any,
) -> Subject:
    """Live objects as something that questions are asked of; see `analyse`.

    Args:
        model: is copied.
        loss: a name (``"cross_entropy"``), a function of (outputs, targets), or a loss module. None: the own loss of a
            model of transformers, or none is needed (`jacobian`).
        data: one batch (a tensor, tuple or dict), or several (a list, iterator, DataLoader or dataset).
        objective: a function of (model, batch) that returns the mean loss or (sum, count), instead of ``loss``.
        settings: of the target, with underscores.

    Raises:
        UsageError: a setting is unknown or wrong.
    """
    from curvcli.loading.live import LiveTarget

    notes: list[str] = []
    target = LiveTarget(model, data, loss, objective, spec_of(settings), notes)
    return Subject(target.spec, target=target, name=type(model).__name__)


def spec_of(settings: dict[str, Any]) -> TargetSpec:
    """Settings with underscores, checked; what objects stand for is none of them.

    Raises:
        UsageError: a setting is unknown or wrong.
    """
    for name in settings:
        if name in _OBJECTS or name not in TargetSpec.__struct_fields__:
            known = ", ".join(f for f in TargetSpec.__struct_fields__ if f not in _OBJECTS)
            raise UsageError(f"there is no setting {name!r}", f"known: {known}")
    try:
        return msgspec.convert({k.replace("_", "-"): v for k, v in settings.items()}, TargetSpec)
    except msgspec.ValidationError as error:
        raise UsageError(f"a setting is wrong: {error}", "see 'curvcli hessian --help'") from None


def _ask(name: str, model: "nn.Module", loss: Any, data: Any, given: dict[str, Any]) -> Answer[Any]:
    """The answer; what is no option of the question is a setting of the target."""
    question = get(name)
    options = {o.name for o in question.fields()} | {"journal"}
    settings = {key: value for key, value in given.items() if key not in options}
    subject = inspect(model, loss, data, **settings)
    chosen = {key: value for key, value in given.items() if key in options}
    return _told(question, subject, chosen, f"curvcli.{name}")


def _told(question: Question, subject: Subject, chosen: dict[str, Any], where: str) -> Answer[Any]:
    """The answer, with progress in notebooks unless there is a journal."""
    journal = chosen.pop("journal", None)
    if journal is not None:
        return question.ask(subject, chosen, journal, where)
    with progress_line() as progress:
        return question.ask(subject, chosen, Journal(progress=progress), where)


def hessian(
    model: "nn.Module", loss: Loss | None = None, data: Any = None, **options: Any
) -> "Answer[HessianResult]":
    """The largest and smallest eigenvalues of the Hessian, each with its error; `Answer.vectors` has the vectors."""
    return _ask("hessian", model, loss, data, options)


def density(
    model: "nn.Module", loss: Loss | None = None, data: Any = None, **options: Any
) -> "Answer[DensityResult]":
    """How the eigenvalues are spread."""
    return _ask("density", model, loss, data, options)


def trace(
    model: "nn.Module", loss: Loss | None = None, data: Any = None, **options: Any
) -> "Answer[TraceResult]":
    """Trace, Frobenius norm and other sums over the spectrum."""
    return _ask("trace", model, loss, data, options)


def landscape(
    model: "nn.Module", loss: Loss | None = None, data: Any = None, **options: Any
) -> "Answer[LandscapeResult]":
    """The loss along one or two directions."""
    return _ask("landscape", model, loss, data, options)


def sharpness(
    model: "nn.Module", loss: Loss | None = None, data: Any = None, **options: Any
) -> "Answer[SharpnessResult]":
    """How much the loss rises around the weights, also by measures that rescaled layers do not change."""
    return _ask("sharpness", model, loss, data, options)


def saddle(
    model: "nn.Module", loss: Loss | None = None, data: Any = None, **options: Any
) -> "Answer[SaddleResult]":
    """What kind of critical point the weights sit at."""
    return _ask("saddle", model, loss, data, options)


def taylor(
    model: "nn.Module", loss: Loss | None = None, data: Any = None, **options: Any
) -> "Answer[TaylorResult]":
    """The second-order model of the loss against the truth."""
    return _ask("taylor", model, loss, data, options)


def step(
    model: "nn.Module", loss: Loss | None = None, data: Any = None, **options: Any
) -> "Answer[StepResult]":
    """One step by each of several methods, predicted and true."""
    return _ask("step", model, loss, data, options)


def backprop(
    model: "nn.Module", loss: Loss | None = None, data: Any = None, **options: Any
) -> "Answer[BackpropResult]":
    """Gradients against hand-written identities and finite differences."""
    return _ask("backprop", model, loss, data, options)


def gradients(
    model: "nn.Module", loss: Loss | None = None, data: Any = None, **options: Any
) -> "Answer[GradientsResult]":
    """How signals and gradients travel through the layers."""
    return _ask("gradients", model, loss, data, options)


def jacobian(
    model: "nn.Module", data: Any = None, loss: Loss | None = None, **options: Any
) -> "Answer[JacobianResult]":
    """Norms and singular values of the Jacobian of the outputs; no loss is needed."""
    return _ask("jacobian", model, loss, data, options)


def lr(
    model: "nn.Module", loss: Loss | None = None, data: Any = None, **options: Any
) -> "Answer[LrResult]":
    """A range of learning rates that work, from short true runs on copies."""
    return _ask("lr", model, loss, data, options)


def check(
    model: "nn.Module", loss: Loss | None = None, data: Any = None, **options: Any
) -> "Answer[CheckResult]":
    """Whether rules over the figures of any question hold, ``rules=["hessian.top[0].value < 50"]``; the default ones
    without."""
    question = get("check")
    names = {o.name for o in question.fields()} | {"journal"}
    if isinstance(data, Iterator):  # every question reads the data again
        data = list(itertools.islice(data, options.get("max_batches")))
    subject = inspect(model, loss, data, **{k: v for k, v in options.items() if k not in names})
    chosen = {k: v for k, v in options.items() if k in names}
    return _told(question, Subject(members=[subject]), chosen, "curvcli.check")


def read_answer(path: "str | Path") -> Answer[Any]:
    """The answer that `Answer.save` wrote; without its eigenvectors.

    Raises:
        CheckpointError: it cannot be read, or is none.
    """
    try:
        whole = msgspec.json.decode(Path(path).read_bytes())
        question = get(whole["command"])
        result = msgspec.convert(whole["result"], question.result)
        findings = msgspec.convert(whole["findings"], list[Finding])
        headline = msgspec.convert(whole["verdict"], Headline)
    except (OSError, KeyError, TypeError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CheckpointError(
            f"{path} is not a saved answer: {error}", "name a file that Answer.save wrote"
        ) from None
    return Answer(
        result, findings, whole["notes"], whole["complete"], headline=headline, question=question
    )


def as_linear_operator(operator: "Curvature[Any]") -> Any:
    """A curvature matrix as a `scipy.sparse.linalg.LinearOperator` of shape (n, n), in the operator's dtype.

    Raises:
        UsageError: SciPy is not installed.

    >>> import torch
    >>> from types import SimpleNamespace
    >>> a = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    >>> op = SimpleNamespace(n=2, dtype=a.dtype, device=a.device, matvec=lambda v: a @ v)
    >>> (as_linear_operator(op) @ [1.0, 0.0]).tolist()
    [2.000000, 1.000000]
    """
    import numpy as np
    import torch

    try:
        from scipy.sparse.linalg import LinearOperator
    except ImportError:
        raise UsageError("operators for SciPy need SciPy", "pip install scipy") from None
    kind = np.float64 if operator.dtype == torch.float64 else np.float32

    def product(v_N: Any) -> Any:
        vector_N = torch.as_tensor(np.asarray(v_N).reshape(-1), dtype=operator.dtype)
        return operator.matvec(vector_N.to(operator.device)).cpu().numpy()

    return LinearOperator((operator.n, operator.n), matvec=product, rmatvec=product, dtype=kind)
