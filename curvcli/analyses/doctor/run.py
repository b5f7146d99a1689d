"""`curvcli doctor`: does this installation compute what it should?"""

import platform
from collections.abc import Callable
from importlib import metadata

import torch
from torch import nn

from curvcli.analyses.doctor.command import DoctorOptions
from curvcli.analyses.doctor.findings import SELF_TEST
from curvcli.analyses.doctor.result import DoctorResult, SelfTest
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.subject import Subject
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.machine.device import free_memory
from curvcli.machine.precision import set_precision
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective
from curvcli.operators.curvature.hessian import Hessian

PACKAGES = ("torch", "numpy", "safetensors", "typer", "rich", "msgspec")


def run(subject: Subject, options: DoctorOptions, journal: Journal) -> Answer[DoctorResult]:
    """Answer `curvcli doctor`; see `DoctorOptions`."""
    device = subject.target.device
    tests: list[SelfTest] = []
    known = _TESTS
    for name, run in known.items():
        journal.progress(Stage("self-tests", len(tests), len(known), name))
        error, tolerance = run(device)
        tests.append(SelfTest(name, error, tolerance, error <= tolerance))
        if error > tolerance:
            journal.find(
                SELF_TEST,
                name,
                f"self-test failed: {name}",
                value=error,
                threshold=tolerance,
            )
    devices = [
        "cpu",
        *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())),
    ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return journal.answer(
        DoctorResult(
            python=platform.python_version(),
            platform=platform.platform(),
            packages={name: metadata.version(name) for name in PACKAGES},
            devices=devices,
            threads=torch.get_num_threads(),
            free_memory=free_memory(device),
            tests=tests,
            healthy=all(t.passed for t in tests),
        )
    )


def _products(device: torch.device) -> tuple[float, float]:
    # Between two numbers of TF32: a product of full precision keeps the last bits.
    odd = 1 + 2.0**-13
    a, image = torch.full((64, 64), odd), torch.full((1, 1, 8, 8), odd)
    set_precision(tf32=False)
    matrix = a.to(device) @ torch.eye(64, device=device)
    weight = torch.ones(1, 1, 1, 1, device=device)
    convolved = nn.functional.conv2d(image.to(device), weight)
    return max(float((x - odd).abs().max()) for x in (matrix, convolved)), 1e-6


def _regression(device: torch.device) -> tuple[float, float]:
    # L = mean (wx - y)² has the Hessian (2/N) XᵀX; X = 4 Q with orthonormal columns scaled by 1…8.
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(64, 8, generator=generator))
    x = (q * torch.arange(1.0, 9.0)).to(device)
    model = nn.Linear(8, 1, bias=False).to(device)
    batch = Batch((x, torch.zeros(64, 1, device=device)), 64)
    objective = make_objective(
        model, [batch], lambda m, d: ((m(d[0]) - d[1]).square().sum(), float(len(d[0])))
    )
    found = lanczos(Hessian(objective), Wanted(3, 2))
    known = [2 * k * k / 64 for k in (8, 7, 6, 1, 2)]
    errors = [abs(v - k) / k for v, k in zip(found.values_K.tolist(), known, strict=True)]
    return max(errors), 1e-4


class _Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v)


class _Recur(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, _ = self.lstm(x)
        return torch.as_tensor(output)


def _against_differences(model: nn.Module, device: torch.device) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, 8, generator=generator).to(device)
    objective = make_objective(
        model.to(device), [Batch(x, 4)], lambda m, d: (m(d).square().sum(), 4.0)
    )
    operator = Hessian(objective)
    error = operator.check(operator.gradient)
    return float("inf") if error is None else error, 1e-2


_TESTS: dict[str, Callable[[torch.device], tuple[float, float]]] = {
    "products in full float32, without TF32": _products,
    "eigenvalues of a linear regression": _regression,
    "second derivative of fused attention": lambda device: _against_differences(_Attend(), device),
    "second derivative of an LSTM": lambda device: _against_differences(_Recur(), device),
}
"""Name -> function of the device that returns (relative error, tolerance)."""
