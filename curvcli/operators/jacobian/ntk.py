"""The parameter Jacobian of a batch, and its Gram matrix: the empirical neural tangent kernel.

K = J Jᵀ with J = ∂(outputs of all samples)/∂θ (Jacot, Gabriel & Hongler, NeurIPS 2018). Its non-zero
eigenvalues are those of JᵀJ. For a loss with output Hessian H = L Lᵀ (block diagonal over samples) those of
the generalised Gauss-Newton matrix JᵀHJ are the ones of LᵀKL.

Shapes: ``S`` samples, ``M`` outputs of each, ``R`` = S·M rows, ``P`` parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curvcli.errors import MemoryLimitError, ModelError
from curvcli.linalg.operator import ROUNDING
from curvcli.linalg.svd.bidiagonal import steps_that_fit
from curvcli.linalg.svd.golub_kahan import golub_kahan, true_residuals
from curvcli.machine.containers import joined
from curvcli.machine.memory import HELD, human
from curvcli.machine.meter import MemoryMeter
from curvcli.objective.batch import Batch
from curvcli.objective.calls import call_model
from curvcli.objective.layout import flatten
from curvcli.objective.network import evaluation
from curvcli.objective.terms import LossTerms
from curvcli.operators.autodiff.kernels import Kernels
from curvcli.operators.jacobian.jacobian import SMALL_PIECE, Jacobian, Structure
from curvcli.operators.jacobian.spectra import Settings, frobenius
from curvcli.operators.jacobian.taps import Target, pick

# Rows up to which K is formed and decomposed whole.
GRAM_ROWS = 4096


class Kernel(NamedTuple):
    """Eigenvalues of K, largest first, float64; with what they may be off by."""

    eigenvalues_R: Tensor
    errors_R: Tensor
    trace: float
    trace_error: float
    formed: bool
    converged_R: Tensor
    matrix_RR: Tensor | None


@dataclass(frozen=True)
class ParameterJacobian:
    """∂(outputs)/∂θ of a small batch.

    Args:
        model: the network, in its mode.
        parameters: θ.
        batch: the samples; arranged as (arguments, keywords, targets).
        target: which output.
        coupled: whether samples depend on each other, so that they must be run together.
        kernels: replacements of kernels.
    """

    model: nn.Module
    parameters: Sequence[nn.Parameter]
    batch: Batch
    target: Target
    coupled: bool
    kernels: Kernels

    def outputs(self, batch: Batch) -> Tensor:
        """The outputs of a piece, shape ``(S, m)``, with their graph."""
        return self.raw_outputs(batch).reshape(batch.size, -1)

    def raw_outputs(self, batch: Batch) -> Tensor:
        """The outputs in the shape that the network gives them."""
        positional, keywords, _ = batch.data
        seen: list[Tensor] = []

        def read(_: nn.Module, __: Any, output: Any) -> None:
            seen.append(pick(output, self.target.output))

        with torch.enable_grad(), evaluation(self.model), self.kernels.active():
            if self.target.module is not None:
                module = dict(self.model.named_modules())[self.target.module]
                handle = module.register_forward_hook(read)
                try:
                    call_model(self.model, positional, keywords)
                finally:
                    handle.remove()
            else:
                seen.append(pick(call_model(self.model, positional, keywords), self.target.output))
        if not seen:
            raise ModelError(
                f"the module {self.target.module!r} is not called on this data",
                "choose another --of",
            )
        y = seen[-1]
        if not y.requires_grad:
            raise ModelError(
                f"the {self.target} does not depend on the parameters", "choose another --of"
            )
        return y

    def rows(self, start: int, stop: int, per_sample: int) -> Tensor:
        """Rows ``start`` to ``stop`` of J, shape ``(R, P)``; one backward pass each."""
        out = []
        first, last = start // per_sample, (stop - 1) // per_sample
        runs = [self.batch] if self.coupled else [
            self.batch.take([i]) if self.batch.splittable and self.batch.size > 1 else self.batch
            for i in range(first, last + 1)
        ]  # fmt: skip
        for index, piece in enumerate(runs):
            y_R = self.outputs(piece).reshape(-1)
            offset = 0 if self.coupled else (first + index) * per_sample
            for row in range(max(start, offset), min(stop, offset + len(y_R))):
                parts = torch.autograd.grad(
                    y_R[row - offset],
                    list(self.parameters),
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                out.append(flatten(parts))
        return torch.stack(out)

    def kernel(self, per_sample: int, available: int, progress: Callable[[int], None]) -> Kernel:
        """K, formed block by block within ``available`` bytes, and all its eigenvalues."""
        rows = self.batch.size * per_sample
        p = sum(q.numel() for q in self.parameters)
        itemsize = torch.finfo(self.parameters[0].dtype).bits // 8
        fixed = 4 * rows * rows * 8
        block = min(rows, int((available - fixed) / max(1, 3 * p * itemsize)))
        if block < 1:
            raise MemoryLimitError(
                f"{human(max(0, available))} are available; a kernel of {rows} rows for {p:,} parameters "
                f"needs {human(fixed + 3 * p * itemsize)}",
                "choose fewer samples by --sample or --max-batches with --batch-size, or restrict --params",
            )
        matrix_RR = torch.zeros(rows, rows, dtype=torch.float64)
        for start in range(0, rows, block):
            stop = min(start + block, rows)
            left = self.rows(start, stop, per_sample)
            for other in range(start, rows, block):
                end = min(other + block, rows)
                right = left if other == start else self.rows(other, end, per_sample)
                part = (
                    (left.cpu().double() @ right.cpu().double().T)
                    if p <= 1 << 16
                    else (left @ right.T).cpu().double()
                )
                matrix_RR[start:stop, other:end] = part
                matrix_RR[other:end, start:stop] = part.T
            progress(stop)
        values_R = torch.linalg.eigvalsh(matrix_RR).flip(0)
        trace = float(matrix_RR.trace())
        eps = torch.finfo(self.parameters[0].dtype).eps
        error = float(ROUNDING * eps * values_R[0].abs())
        # K has no more non-zero eigenvalues than there are parameters, and none is negative.
        return Kernel(
            values_R,
            torch.full_like(values_R, error),
            trace,
            0.0,
            True,
            torch.ones(rows, dtype=torch.bool),
            matrix_RR,
        )

    def leading(self, settings: Settings, available: float) -> tuple[Kernel, int, list[str]]:
        """The leading eigenvalues of K by Golub-Kahan-Lanczos on J within ``available`` bytes.

        Returns:
            The kernel, products with J and Jᵀ spent, and notes on kernels that were switched.

        Raises:
            MemoryLimitError: the graph of all samples and the fewest Krylov vectors do not fit.
        """
        steps = self._steps_within(available, settings)
        notes: list[str] = []
        while True:
            y = self.outputs(self.batch)
            op = Jacobian(
                list(self.parameters), y.reshape(-1), 1, Structure(True, None), self.kernels
            )
            missing = op.missing()
            if missing is None:
                break
            note = self.kernels.switch_for(missing)
            if note is None:
                raise ModelError(
                    f"a kernel of {op.rows:,} rows needs a second derivative that is missing: "
                    + " ".join(missing.split())[:120],
                    f"choose samples by --sample, so that it has at most {GRAM_ROWS:,} rows and can be formed",
                )
            notes.append(note)
        found = golub_kahan(
            op,
            settings.top,
            tol=settings.tol / 4,
            max_steps=min(settings.max_steps, steps),
            seeds=[settings.seed],
            stop=settings.stop,
            progress=settings.progress,
        )
        if settings.stop():
            values, residuals = found.values_SK[0], found.bounds_SK[0]
        else:
            values, residuals = (t[0] for t in true_residuals(op, found))
        norm, error = frobenius(op, found, settings.probes, [settings.seed])
        # σ ± ρ squared.
        errors = 2 * values * residuals + residuals**2
        kernel = Kernel(
            values**2,
            errors,
            float(norm[0] ** 2),
            float(2 * norm[0] * error[0]),
            False,
            errors <= settings.tol * torch.maximum(values**2, 0.01 * values[:1] ** 2),
            None,
        )
        return kernel, op.products, notes

    def _steps_within(self, available: float, settings: Settings) -> int:
        """Krylov steps that there is room for beside the graph of all samples."""
        sizes = [self.batch.size]
        if not self.coupled and self.batch.splittable and self.batch.size > 2 * SMALL_PIECE:
            sizes = [SMALL_PIECE, 2 * SMALL_PIECE]
        peaks = [self._peak(next(iter(self.batch.pieces(size)))) for size in sizes]
        slope = (peaks[-1] - peaks[0]) / max(1, sizes[-1] - sizes[0])
        graph = HELD * (peaks[0] + slope * (self.batch.size - sizes[0]))
        p = sum(q.numel() for q in self.parameters)
        itemsize = torch.finfo(self.parameters[0].dtype).bits // 8
        rows = self._rows()
        least = min(settings.top + 2, rows, p)
        steps = steps_that_fit(available - graph, rows, p, itemsize)
        if steps < least:
            needed = graph + 1.5 * itemsize * (rows + p) * least
            raise MemoryLimitError(
                f"{human(max(0.0, available))} are available; the {rows:,} rows of the kernel need {human(needed)}",
                "raise --memory, choose fewer samples by --sample or --max-batches, or restrict --params",
            )
        return steps

    def _rows(self) -> int:
        one = self.batch if self.coupled or not self.batch.splittable else self.batch.take([0])
        return self.outputs(one).numel() * (self.batch.size // one.size)

    def _peak(self, piece: Batch) -> int:
        """Bytes of the graph of some samples, and of products with it."""
        meter = MemoryMeter()
        with meter:
            y = self.outputs(piece).reshape(-1)
            op = Jacobian(list(self.parameters), y, 1, Structure(True, None), self.kernels)
            op.missing()
        return meter.peak


def join(batches: Sequence[Batch]) -> Batch | None:
    """All samples as one batch; None where tensors of the batches do not fit together.

    Right only where no sample depends on another.
    """
    if len(batches) == 1:
        return batches[0]
    if not all(batch.splittable for batch in batches):
        return None
    data = joined([batch.data for batch in batches])
    return None if data is None else Batch(data, sum(batch.size for batch in batches))


def output_hessians(terms: LossTerms, outputs: Tensor, batch: Batch) -> Tensor:
    """∂²(Σ ℓ)/∂y² of each sample, divided by the loss terms W, shape ``(S, m, m)``.

    Args:
        terms: the loss, as a function of model and batch.
        outputs: as the network returns them.
        batch: the same samples, with targets.
    """
    given_SM = outputs.detach().reshape(batch.size, -1).clone().requires_grad_()
    with torch.enable_grad():
        total, weight = terms(_Returns(given_SM.reshape(outputs.shape)), batch.data)
        (gradient_SM,) = torch.autograd.grad(total, given_SM, create_graph=True)
        if not gradient_SM.requires_grad:
            return given_SM.new_zeros(*given_SM.shape, given_SM.shape[1])
        columns = [
            torch.autograd.grad(
                gradient_SM[:, k].sum(), given_SM, retain_graph=True, materialize_grads=True
            )[0]
            for k in range(given_SM.shape[1])
        ]
    return torch.stack(columns, 2) / weight


def gauss_newton(matrix_RR: Tensor, hessians_SMM: Tensor) -> Tensor | None:
    """Eigenvalues of LᵀKL with H = L Lᵀ, largest first; None where H has negative eigenvalues."""
    h_SMM = hessians_SMM.cpu().double()
    values_SM, vectors_SMM = torch.linalg.eigh((h_SMM + h_SMM.mT) / 2)
    floor = ROUNDING * torch.finfo(hessians_SMM.dtype).eps * values_SM.abs().max()
    if bool((values_SM < -floor).any()):
        return None
    roots_SMM = vectors_SMM * values_SM.clamp(min=0).sqrt()[:, None, :]
    left_RR = torch.block_diag(*roots_SMM)
    values_R: Tensor = torch.linalg.eigvalsh(left_RR.T @ matrix_RR @ left_RR).flip(0)
    return values_R


class _Returns(nn.Module):
    """A network whose outputs are given."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self._outputs = outputs

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """The outputs."""
        return self._outputs
