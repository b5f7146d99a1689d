"""curvcli and its peers behind one signature: the leading eigenvalues by magnitude.

Each engine is a function ``(workload, steps) -> (values, products)``; ``steps`` is the right number of Lanczos
steps, found beforehand and handed to the engines that ask for one.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from workloads import Workload

TOL = 1e-3

Found = tuple[list[float], int]


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention kernels with a second derivative, which curvcli chooses by itself."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield


def run_curvcli(workload: Workload, **options: Any) -> tuple[Any, Any]:
    """(result, subject) of the whole `hessian` analysis."""
    import curvcli

    def terms(model: torch.nn.Module, data: Any) -> tuple[Tensor, float]:
        inputs, targets = data
        count = float(targets.numel())
        return workload.loss(model(inputs), targets) * count, count

    batch = curvcli.Batch(
        (workload.inputs, workload.targets), len(workload.targets), workload.splittable
    )
    subject = curvcli.Subject(objective=curvcli.make_objective(workload.model, [batch], terms))
    settings = {"top": workload.wanted, "bottom": 0, "order": "magnitude", "tol": TOL, **options}
    return curvcli.analyse("hessian", subject, **settings).result, subject


def curvcli_whole(workload: Workload, _: int) -> Found:
    """As a user gets it: residuals, reach, check of products, copies looked for, spread over the data."""
    result, subject = run_curvcli(workload)
    assert result.status == "converged"
    return [p.value for p in result.top], subject.objective.cost.matvecs


def curvcli_plain(workload: Workload, _: int) -> Found:
    """Certified eigenvalues, without the look for copies and the spread over the data."""
    result, subject = run_curvcli(workload, recheck=0, spread=0)
    assert result.status == "converged"
    return [p.value for p in result.top], subject.objective.cost.matvecs


def eigenthings(workload: Workload, steps: int | None) -> Found:
    from hessian_eigenthings.algorithms.lanczos import lanczos
    from hessian_eigenthings.operators.hessian import HessianOperator

    class Counted(HessianOperator):
        products = 0

        def _hvp_autograd(self, v_split: list[Tensor], batch: Any) -> Tensor:
            # The original refuses parameters that the loss does not reach.
            self.products += 1
            loss = self.loss_fn(self.model, batch)
            gradients = torch.autograd.grad(
                loss, self._param_list, create_graph=True, materialize_grads=True
            )
            reached = [i for i, g in enumerate(gradients) if g.requires_grad]
            out = torch.autograd.grad(
                [gradients[i] for i in reached],
                self._param_list,
                [v_split[i] for i in reached],
                materialize_grads=True,
            )
            return torch.cat([h.reshape(-1) for h in out])

    with twice_differentiable():
        operator = Counted(workload.model, [0], lambda model, _: workload.value())
        found = lanczos(
            operator, k=workload.wanted, max_iter=steps, tol=TOL, reorthogonalize=True, seed=0
        )
    return found.eigenvalues.tolist(), operator.products


def eigenthings_default(workload: Workload, _: int) -> Found:
    return eigenthings(workload, None)


def curvlinops(workload: Workload, steps: int) -> Found:
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import LinearOperator, eigsh

    with twice_differentiable():
        operator = HessianLinearOperator(
            workload.model,
            workload.loss,
            workload.parameters,
            [(workload.inputs, workload.targets)],
            check_deterministic=False,
        ).to_scipy()
        products = 0

        def multiply(v: Any) -> Any:
            nonlocal products
            products += 1
            return operator @ v

        counted = LinearOperator(operator.shape, matvec=multiply, dtype=operator.dtype)
        start = np.random.default_rng(0).standard_normal(counted.shape[0]).astype(np.float32)
        values = eigsh(
            counted,
            workload.wanted,
            ncv=steps,
            tol=TOL,
            v0=start,
            which="LM",
            return_eigenvectors=False,
        )
    return sorted(values.tolist(), key=abs, reverse=True), products


def pyhessian(workload: Workload, _: int) -> Found:
    import pyhessian

    # The package's attribute of that name is the class.
    module = sys.modules["pyhessian.hessian"]
    original, products = module.hessian_vector_product, 0

    def counted(*arguments: Any) -> Any:
        nonlocal products
        products += 1
        return original(*arguments)

    module.hessian_vector_product = counted
    try:
        with twice_differentiable():
            for parameter in workload.parameters:
                parameter.grad = None
            found = pyhessian.hessian(
                workload.model,
                workload.loss,
                data=(workload.inputs, workload.targets),
                cuda=False,
            )
            values, _vectors = found.eigenvalues(maxIter=100, tol=TOL, top_n=workload.wanted)
    finally:
        module.hessian_vector_product = original
    return values, products


def reference(workload: Workload) -> list[float]:
    """Float64, ARPACK, tolerance 1e-6: shares no code with any of the engines but autograd."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    workload.double()
    shapes = [p.shape for p in workload.parameters]
    sizes = [p.numel() for p in workload.parameters]
    with twice_differentiable():
        gradients = torch.autograd.grad(
            workload.value(), workload.parameters, create_graph=True, materialize_grads=True
        )
        reached = [i for i, g in enumerate(gradients) if g.requires_grad]

        def multiply(v: Any) -> Any:
            parts = torch.from_numpy(np.asarray(v)).split(sizes)
            out = torch.autograd.grad(
                [gradients[i] for i in reached],
                workload.parameters,
                [parts[i].view(shapes[i]) for i in reached],
                retain_graph=True,
                materialize_grads=True,
            )
            return torch.cat([h.reshape(-1) for h in out]).numpy()

        n = sum(sizes)
        operator = LinearOperator((n, n), matvec=multiply, dtype=np.float64)
        # A basis that converges in two or three cycles, and fits.
        ncv = max(40, min(80, int(8e9 / (8 * n))))
        start = np.random.default_rng(0).standard_normal(n)
        values = eigsh(
            operator,
            workload.wanted,
            ncv=ncv,
            tol=1e-6,
            v0=start,
            which="LM",
            return_eigenvectors=False,
        )
    return sorted(values.tolist(), key=abs, reverse=True)


ENGINES: dict[str, Callable[[Workload, int], Found]] = {
    "curvcli": curvcli_whole,
    "curvcli --recheck 0 --spread 0": curvcli_plain,
    "hessian-eigenthings, steps given": eigenthings,
    "hessian-eigenthings, default": eigenthings_default,
    "curvlinops + eigsh, basis given": curvlinops,
    "PyHessian": pyhessian,
}

os.environ.setdefault("HF_HUB_OFFLINE", "1")
