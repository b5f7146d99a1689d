"""What the tests of `jacobian` share: running it on a module in memory, and `torch.func` as the reference."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from curvcli import analyse
from curvcli.analyses.jacobian.result import JacobianResult
from curvcli.analyses.shared.subject import Subject
from curvcli.loading.data.batches import arrange, as_batch
from curvcli.loading.spec import TargetSpec
from curvcli.objective.batch import Batch

# Both sides are computed in float64: what differs is rounding, some 1e3 eps of the largest value.
EXACT = 1e-11


def context_for(model: nn.Module, *raw: Any, **settings: Any) -> Subject:
    """A context whose model and batches are given instead of read from files."""
    context = Subject(TargetSpec(**settings))
    context.target.__dict__["model"] = model
    context.target.__dict__["model_batches"] = [as_batch(arrange(r), opaque=False) for r in raw]
    return context


def run(model: nn.Module, *raw: Any, **options: Any) -> JacobianResult:
    """The answer for a module and batches in memory."""
    return analyse("jacobian", context_for(model, *raw), **options).result


def batch_of(*tensors: Tensor) -> Batch:
    """Inputs of the model as one batch without targets."""
    return Batch((tensors, {}, None), len(tensors[0]))


def reference(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Jacobians of single samples by `torch.func.jacrev`, shape (S, m, n)."""
    found = []
    for sample in x:
        matrix = torch.func.jacrev(lambda s: function(s[None])[0].reshape(-1), chunk_size=1)(sample)
        found.append(matrix.reshape(-1, sample.numel()).detach())
    return torch.stack(found)


def leading(result: JacobianResult) -> Tensor:
    """Leading singular values, one row for each sample."""
    return torch.tensor(
        [[v.value for v in s.singular_values] for s in result.samples], dtype=torch.float64
    )


def residuals(result: JacobianResult) -> Tensor:
    """Their residuals."""
    return torch.tensor(
        [[v.residual for v in s.singular_values] for s in result.samples], dtype=torch.float64
    )


def norms(result: JacobianResult) -> Tensor:
    """Frobenius norms of the samples."""
    return torch.tensor([s.frobenius for s in result.samples], dtype=torch.float64)
