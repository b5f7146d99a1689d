"""`curvcli doctor`: does this installation compute what it should?"""

import platform
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

from curvcli.analyses.shared.analysis import Analysis
from curvcli.analyses.shared.context import Context, Stage
from curvcli.report.data import Block, Column, Facts, Sentence, Table

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "numpy", "safetensors", "typer", "rich", "msgspec")


class SelfTest(Struct, frozen=True):
    """A computation whose answer is known."""

    name: str
    error: Annotated[float, Meta(description="relative to the known answer")]
    tolerance: float
    passed: bool


class DoctorResult(Struct, frozen=True):
    """Versions, devices and self-tests."""

    python: str
    platform: str
    packages: dict[str, str]
    devices: Annotated[list[str], Meta(description="usable with --device")]
    threads: int
    free_memory: Annotated[int, Meta(description="bytes on the device in use, less a margin")]
    tests: list[SelfTest]
    healthy: bool


def doctor(context: Context) -> DoctorResult:
    """Versions, devices, and self-tests with known answers.

    Runs on the device named by --device, so that a GPU can be tested on its own.
    """
    import torch

    from curvcli.machine.device import free_memory

    device = context.target.device
    tests: list[SelfTest] = []
    for name, run in _tests().items():
        context.progress(Stage("self-tests", len(tests), len(_tests()), name))
        error, tolerance = run(device)
        tests.append(SelfTest(name, error, tolerance, error <= tolerance))
        if error > tolerance:
            context.find(
                "doctor.self-test",
                "error",
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
    return DoctorResult(
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: metadata.version(name) for name in PACKAGES},
        devices=devices,
        threads=torch.get_num_threads(),
        free_memory=free_memory(device),
        tests=tests,
        healthy=all(t.passed for t in tests),
    )


def _tests() -> "dict[str, Callable[[torch.device], tuple[float, float]]]":
    """Name -> function of the device that returns (relative error, tolerance)."""
    import torch
    from torch import nn

    from curvcli.linalg.lanczos.lanczos import lanczos
    from curvcli.linalg.lanczos.ritz import Wanted
    from curvcli.objective.batch import Batch
    from curvcli.objective.objective import Objective
    from curvcli.operators.curvature.hessian import Hessian

    def regression(device: torch.device) -> tuple[float, float]:
        # L = mean (wx - y)² has the Hessian (2/N) XᵀX; X = 4 Q with orthonormal columns scaled by 1…8.
        generator = torch.Generator().manual_seed(0)
        q, _ = torch.linalg.qr(torch.randn(64, 8, generator=generator))
        x = (q * torch.arange(1.0, 9.0)).to(device)
        model = nn.Linear(8, 1, bias=False).to(device)
        batch = Batch((x, torch.zeros(64, 1, device=device)), 64)
        objective = Objective(
            model, [batch], lambda m, d: ((m(d[0]) - d[1]).square().sum(), float(len(d[0])))
        )
        found = lanczos(Hessian(objective), Wanted(3, 2))
        known = [2 * k * k / 64 for k in (8, 7, 6, 1, 2)]
        errors = [abs(v - k) / k for v, k in zip(found.values_K.tolist(), known, strict=True)]
        return max(errors), 1e-4

    def attention(device: torch.device) -> tuple[float, float]:
        class Attend(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.project = nn.Linear(8, 24)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                q, k, v = self.project(x).chunk(3, -1)
                return nn.functional.scaled_dot_product_attention(q, k, v)

        return against_differences(Attend(), device)

    def recurrent(device: torch.device) -> tuple[float, float]:
        class Recur(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lstm = nn.LSTM(8, 8, batch_first=True)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                output, _ = self.lstm(x)
                return torch.as_tensor(output)

        return against_differences(Recur(), device)

    def against_differences(model: nn.Module, device: torch.device) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, 5, 8, generator=generator).to(device)
        objective = Objective(
            model.to(device), [Batch(x, 4)], lambda m, d: (m(d).square().sum(), 4.0)
        )
        operator = Hessian(objective)
        error = operator.check(operator.gradient)
        return float("inf") if error is None else error, 1e-2

    return {
        "eigenvalues of a linear regression": regression,
        "second derivative of fused attention": attention,
        "second derivative of an LSTM": recurrent,
    }


def view(result: DoctorResult) -> list[Block]:
    """Versions, tests, verdict."""
    facts = Facts(
        [
            ("python", result.python),
            ("platform", result.platform),
            *((name, version) for name, version in result.packages.items()),
            ("devices", ", ".join(result.devices)),
            ("threads", result.threads),
            ("free memory", f"{result.free_memory / 1e9:.1f} GB"),
        ]
    )
    table = Table(
        "Self-tests",
        (
            Column("test", numeric=False),
            Column("error"),
            Column("tolerance"),
            Column("passed", numeric=False),
        ),
        [(t.name, t.error, t.tolerance, t.passed) for t in result.tests],
    )
    verdict = (
        Sentence("Everything computes what it should.", "good")
        if result.healthy
        else Sentence("A self-test failed: do not trust the numbers of this installation.", "bad")
    )
    return [facts, table, verdict]


ANALYSIS = Analysis(doctor, view, needs="nothing")
