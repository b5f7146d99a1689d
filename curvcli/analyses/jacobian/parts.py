"""The parts of `curvcli jacobian` beside the samples: layers, time, and the parameters."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import torch
from torch import Tensor, nn

from curvcli.analyses.jacobian import summary
from curvcli.analyses.jacobian.findings import (
    CHAIN,
    CHAIN_LIMIT,
    NOT_CONVERGED,
    UNROLL_LIMIT,
    UNROLLED,
)
from curvcli.analyses.jacobian.result import (
    JacobianResult,
    Quantiles,
    SingularValue,
    Status,
    TangentKernel,
)
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import UsageError
from curvcli.loading.loss import loss_terms
from curvcli.machine.memory import room
from curvcli.objective.batch import Batch
from curvcli.objective.network import choose_parameters, uses_batch_statistics
from curvcli.operators.autodiff.kernels import Kernels
from curvcli.operators.jacobian import blocks, time_jacobian
from curvcli.operators.jacobian.jacobian import Structure
from curvcli.operators.jacobian.ntk import (
    GRAM_ROWS,
    Kernel,
    ParameterJacobian,
    gauss_newton,
    join,
    output_hessians,
)
from curvcli.operators.jacobian.spectra import Settings
from curvcli.operators.jacobian.taps import Passage, Target


def with_layers(
    subject: Subject,
    journal: Journal,
    result: JacobianResult,
    passage: Passage,
    piece: Batch,
    structure: Structure,
    settings: Settings,
) -> JacobianResult:
    """The same result with the Jacobian of every layer of the main path."""
    journal.progress(Stage("layers", 0, None))
    samples, steps = blocks.samples_that_fit(
        passage, piece, structure, settings, subject.spec.memory_bytes
    )
    if samples < piece.size:
        journal.note(f"--per-layer looks at {samples} samples: more do not fit in memory")
        piece = piece.take(range(samples))
    settings = replace(settings, max_steps=min(settings.max_steps, steps))
    seeds = [settings.seed * 1_000_003 + i for i in range(1 if structure.coupled else piece.size)]
    chain = blocks.measure_chain(passage, piece, structure, settings, seeds)
    looked_at = sum(s.samples for s in result.samples)
    subject.count(subject.target.device).matvecs += round(chain.products * piece.size / looked_at)
    layers, path = summary.layers_and_path(chain, piece.size)
    if len(layers) == 1:
        journal.note(
            "no layer lies on every way from input to output: the network is taken as one layer"
        )
    if path.product_check is not None and path.product_check > CHAIN_LIMIT:
        journal.find(
            CHAIN,
            "path",
            f"the layers' Jacobians multiply to something that differs by {path.product_check:.1e} from the whole",
            value=path.product_check,
        )
    return msgspec.structs.replace(result, layers=layers, path=path)


def with_time(
    subject: Subject, journal: Journal, result: JacobianResult, passage: Passage, piece: Batch
) -> JacobianResult:
    """The same result with the time Jacobians of recurrent layers, if there are any."""
    cells = [n for n, m in passage.model.named_modules() if isinstance(m, nn.RNNCellBase)]
    if cells:
        journal.note(
            f"{len(cells)} recurrent cells are stepped by the model's own loop and not followed through time"
        )
    journal.progress(Stage("time", 0, None))
    samples = time_jacobian.samples_that_fit(passage, piece, subject.spec.memory_bytes)
    if samples < piece.size:
        journal.note(f"the time Jacobian looks at {samples} samples: more do not fit in memory")
        piece = piece.take(range(samples))
    reports = time_jacobian.time_jacobians(passage, piece, subject.spec.seed)
    for report in reports:
        if report.unroll_error > UNROLL_LIMIT:
            journal.find(
                UNROLLED,
                report.name,
                f"{report.name} unrolled differs by {report.unroll_error:.1e} from its own output: it does more "
                "than torch's equations say",
                value=report.unroll_error,
            )
    return msgspec.structs.replace(result, time=[summary.time_jacobian(r) for r in reports])


def parameters(
    subject: Subject, journal: Journal, batches: Sequence[Batch], target: Target, settings: Settings
) -> JacobianResult:
    """``--wrt parameters``: the neural tangent kernel of all samples."""
    batch = batches[0]
    model = subject.target.model
    names, chosen, notes = choose_parameters(model, subject.spec.params)
    journal.notes.extend(notes)
    journal.progress(Stage("parameters", 0, None))
    jacobian = ParameterJacobian(model, chosen, batch, target, True, Kernels())
    coupled = _coupled(jacobian)
    if coupled and batch.size > 1:
        journal.note(
            "the samples depend on each other (batch statistics): the kernel is that of the batch as it is"
        )
    if len(batches) > 1:
        joined = None if coupled else join(batches)
        if joined is None:
            why = (
                "samples depend on each other"
                if coupled
                else "their tensors have different shapes or no sample axis"
            )
            raise UsageError(
                f"--wrt parameters takes the kernel of all samples at once, and the {len(batches)} batches cannot "
                f"be joined: {why}",
                "pass --max-batches 1, with a larger --batch-size where more samples are wanted",
            )
        batch = joined
    jacobian = replace(jacobian, batch=batch, coupled=coupled)
    # The graph of all samples may not fit.
    alone = not coupled and batch.splittable
    y = jacobian.outputs(batch.take([0]) if alone else batch)
    per_sample, device = y.shape[1], y.device
    rows = batch.size * per_sample
    del y
    available = room(device, subject.spec.memory_bytes)
    cost = subject.count(device)
    gauss_newton = None
    if rows <= GRAM_ROWS and settings.method != "golub-kahan":
        kernel = jacobian.kernel(
            per_sample,
            available,
            lambda done: journal.progress(Stage("rows", done, rows)),
        )
        cost.gradients += per_sample
        gauss_newton = _gauss_newton(subject, journal, jacobian, kernel)
    else:
        kernel, products, notes = jacobian.leading(settings, available)
        journal.notes.extend(notes)
        cost.matvecs += products
        journal.note(
            f"the kernel has {rows:,} rows: only its leading eigenvalues are computed "
            f"(all of them up to {GRAM_ROWS:,} rows; choose samples by --sample)"
        )
    count = sum(p.numel() for p in chosen)
    ntk = summary.tangent_kernel(
        kernel, gauss_newton, samples=batch.size, outputs=per_sample, parameters=count
    )
    return _result(journal, ntk, f"parameters ({len(names)} tensors)", str(target), coupled)


def _result(
    journal: Journal, ntk: TangentKernel, wrt: str, of: str, coupled: bool
) -> JacobianResult:
    """The kernel's answer in the form of a single Jacobian: σ = √λ."""
    largest = ntk.eigenvalues[0]
    spectral = None if largest.value is None else max(0.0, largest.value) ** 0.5
    norm = None if ntk.trace is None else max(0.0, ntk.trace) ** 0.5
    error = largest.residual / (2 * spectral) if largest.residual is not None and spectral else None
    norm_error = ntk.trace_standard_error / (2 * norm) if norm and ntk.trace_standard_error else 0.0
    stable = (norm / spectral) ** 2 if norm is not None and spectral else None
    condition = None if ntk.condition is None else ntk.condition**0.5
    open_ = sum(not e.converged for e in ntk.eigenvalues)
    status: Status = "converged"
    if open_:
        journal.cut_short()
        status = journal.stop() or "max_matvecs"
        journal.find(
            NOT_CONVERGED,
            "ntk",
            f"{open_} of {len(ntk.eigenvalues)} eigenvalues have not converged",
            value=float(open_),
        )
    formed = ntk.method == "gram"
    return JacobianResult(
        wrt=wrt,
        of=of,
        outputs=ntk.samples * ntk.outputs,
        inputs=ntk.parameters,
        method="gram" if formed else "golub-kahan",
        coupled=coupled,
        status=status,
        frobenius=_single(norm, norm_error),
        spectral=_single(spectral, error),
        condition=_single(condition, None) if formed else None,
        effective_rank=None,
        stable_rank=_single(stable, None),
        samples=[],
        worst=[],
        matrices=[],
        layers=[],
        path=None,
        time=[],
        ntk=ntk,
        micro_batch=ntk.samples,
    )


def _single(value: float | None, error: float | None) -> Quantiles:
    return Quantiles(value, value, value, value, value, value, error)


def _gauss_newton(
    subject: Subject, journal: Journal, jacobian: ParameterJacobian, kernel: Kernel
) -> list[SingularValue] | None:
    """Non-zero spectrum of the loss' Gauss-Newton matrix, where a loss of the outputs is given."""
    spec, batch = subject.spec, jacobian.batch
    targets = batch.data[2]
    usable = spec.loss not in (None, "model", "output") and spec.objective is None
    if not usable or targets is None or jacobian.target.module or jacobian.target.output:
        return None
    assert spec.loss is not None
    raw: Tensor = jacobian.raw_outputs(batch)
    hessians = output_hessians(loss_terms(spec.loss, spec.loss_args), raw, batch)
    assert kernel.matrix_RR is not None
    found = gauss_newton(kernel.matrix_RR, hessians)
    if found is None:
        journal.note(f"the loss {spec.loss} is not convex in the outputs: no Gauss-Newton spectrum")
        return None
    # The kernel's error relative to its norm carries over.
    relative = float(kernel.errors_R[0] / kernel.eigenvalues_R[0]) if kernel.trace else 0.0
    error = relative * float(found[0])
    return [SingularValue(float(v), error, True) for v in found]


def _coupled(jacobian: ParameterJacobian) -> bool:
    """Whether a sample's outputs change when it is run alone."""
    batch = jacobian.batch
    if not batch.splittable or uses_batch_statistics(jacobian.model):
        return True
    together, alone = jacobian.outputs(batch)[0], jacobian.outputs(batch.take([0]))[0]
    if together.shape != alone.shape:
        return True
    difference = float((together - alone).detach().abs().max())
    scale = float(together.detach().abs().max())
    return difference > 1e3 * torch.finfo(together.dtype).eps * scale
