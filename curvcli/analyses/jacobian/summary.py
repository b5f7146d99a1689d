"""From computed spectra to the fields of the answer."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from curvcli.analyses.jacobian.result import (
    LayerJacobian,
    Path,
    Quantiles,
    SampleJacobian,
    SingularValue,
    TangentKernel,
    TimeJacobian,
)
from curvcli.operators.jacobian.blocks import Chain, isometry
from curvcli.operators.jacobian.chunks import Measured
from curvcli.operators.jacobian.ntk import Kernel
from curvcli.operators.jacobian.spectra import Spectra
from curvcli.operators.jacobian.time_jacobian import TimeReport


def finite(value: float | None) -> float | None:
    """The number, or None where it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def quantiles(
    values: Sequence[float | None], errors: Sequence[float | None] | None = None
) -> Quantiles:
    """Of the values that are known; infinite ones count as the largest.

    Args:
        values: of the samples; None: not known.
        errors: of the samples; their largest is given.
    """
    known = sorted(v for v in values if v is not None and not math.isnan(v))

    def at(q: float) -> float | None:
        if not known:
            return None
        place = q * (len(known) - 1)
        low, high = known[math.floor(place)], known[math.ceil(place)]
        return finite(low if low == high else low + (place - math.floor(place)) * (high - low))

    return Quantiles(
        mean=finite(sum(known) / len(known)) if known else None,
        minimum=at(0),
        lower_quartile=at(0.25),
        median=at(0.5),
        upper_quartile=at(0.75),
        maximum=at(1),
        error=None if errors is None else max((e for e in errors if e is not None), default=None),
    )


def sample_jacobians(
    measured: Sequence[Measured], numbers: Sequence[int], coupled: bool
) -> list[SampleJacobian]:
    """One entry for each matrix.

    Args:
        measured: piece by piece.
        numbers: of the samples that were looked at.
        coupled: one matrix for a whole piece.
    """
    entries = []
    for piece in measured:
        for i in range(1 if coupled else piece.size):
            index = numbers[piece.first + i]
            jump = finite(float(piece.jumps_S[i]))
            size = piece.size if coupled else 1
            entries.append(_sample(piece.spectra, i, index, size, jump))
    return entries


def _sample(s: Spectra, i: int, index: int, size: int, jump: float | None) -> SampleJacobian:
    def of(tensor: Tensor | None) -> float | None:
        return None if tensor is None else finite(float(tensor[i]))

    condition, singular = of(s.condition_S), None
    if s.all_SL is not None and condition is None and of(s.all_SL[:, 0]):
        singular = finite(float(s.all_SL[i, 0] / s.rounding_S[i]))
    return SampleJacobian(
        index=index,
        samples=size,
        frobenius=of(s.frobenius_S),
        frobenius_standard_error=of(s.frobenius_error_S),
        spectral=of(s.values_SK[:, 0]),
        singular_values=[
            SingularValue(finite(v), finite(r), c)
            for v, r, c in zip(
                s.values_SK[i].tolist(),
                s.residuals_SK[i].tolist(),
                s.converged_SK[i].tolist(),
                strict=True,
            )
        ],
        smallest=of(s.smallest_S),
        condition=condition,
        condition_at_least=singular,
        effective_rank=of(s.effective_rank_S),
        stable_rank=of(s.stable_rank_S),
        chi=of(s.chi_S),
        jump=jump,
    )


def layers_and_path(chain: Chain, samples: int) -> tuple[list[LayerJacobian], Path]:
    """The chain of layers, with the bound of norms beside the truth."""
    rows = []
    bound_S = chain.layers[0].own.values_SK[:, 0] ** 0
    for depth, layer in enumerate(chain.layers):
        own, running = layer.own, layer.running
        bound_S = bound_S * own.values_SK[:, 0]
        condition = own.condition_S
        chi_error_S = 2 * own.frobenius_S * own.frobenius_error_S / own.columns
        rows.append(
            LayerJacobian(
                name=layer.name,
                kind=layer.kind,
                depth=depth,
                inputs=own.columns,
                outputs=own.rows,
                spectral=_mean(own.values_SK[:, 0]),
                spectral_residual=_largest(own.residuals_SK[:, 0]),
                spectral_maximum=_largest(own.values_SK[:, 0]),
                chi=_mean(own.chi_S),
                chi_standard_error=finite(
                    float(chi_error_S.square().sum().sqrt() / len(chi_error_S))
                ),
                condition=None if condition is None else quantiles(condition.tolist()).median,
                isometry=isometry(own),
                running_spectral=_mean(running.values_SK[:, 0]),
                running_spectral_residual=_largest(running.residuals_SK[:, 0]),
                running_chi=_mean(running.chi_S),
                running_bound=_mean(bound_S),
            )
        )
    whole = chain.layers[-1].running
    log_true, log_bound = whole.values_SK[:, 0].log(), bound_S.log()
    path = Path(
        samples=samples,
        spectral=finite(float(log_true.mean().exp())),
        bound=finite(float(log_bound.mean().exp())),
        looseness=finite(float((log_bound - log_true).mean().exp())),
        product_check=finite(chain.check),
        isometry=isometry(whole),
    )
    return rows, path


def time_jacobian(report: TimeReport) -> TimeJacobian:
    """A recurrent layer's report as it stands in the answer."""
    exponents = [finite(v) for v in report.lyapunov.exponents_K.tolist()]
    largest = exponents[0]
    return TimeJacobian(
        name=report.name,
        kind=report.kind,
        state=report.state,
        steps=report.steps,
        lags=report.lags,
        spectral=None if report.spectral is None else [finite(v) for v in report.spectral],
        frobenius=[finite(v) for v in report.frobenius],
        lyapunov=largest,
        lyapunov_error=finite(float(report.lyapunov.errors_K[0])),
        lyapunov_spectrum=exponents,
        memory_horizon=-1 / largest if largest is not None and largest < 0 else None,
        unroll_error=finite(report.unroll_error),
    )


def tangent_kernel(
    kernel: Kernel, gauss_newton: list[SingularValue] | None, **sizes: Any
) -> TangentKernel:
    """Eigenvalues of the kernel, with what follows from them."""
    values, errors = kernel.eigenvalues_R.tolist(), kernel.errors_R.tolist()
    pairs = [
        SingularValue(finite(v), finite(e), c)
        for v, e, c in zip(values, errors, kernel.converged_R.tolist(), strict=True)
    ]
    rank, condition = None, None
    if kernel.formed:
        # There cannot be more non-zero eigenvalues than parameters: the rest is rounding.
        count = min(len(values), sizes["parameters"])
        rank = sum(v > e for v, e in zip(values[:count], errors[:count], strict=True))
        if rank == len(values):
            condition = finite(values[0] / values[-1])
    return TangentKernel(
        **sizes,
        method="gram" if kernel.formed else "golub-kahan",
        eigenvalues=pairs,
        trace=finite(kernel.trace),
        trace_standard_error=finite(kernel.trace_error),
        rank=rank,
        condition=condition,
        gauss_newton=gauss_newton,
    )


def _mean(values: Tensor) -> float | None:
    known = values[~values.isnan()]
    return finite(float(known.mean())) if len(known) else None


def _largest(values: Tensor) -> float | None:
    known = values[~values.isnan()]
    return finite(float(known.max())) if len(known) else None
