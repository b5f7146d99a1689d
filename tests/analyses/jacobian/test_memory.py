"""`jacobian --memory` holds for layers, time and large tangent kernels, measured on the whole process."""

import subprocess
import sys

import pytest

_PEAK = """
import sys
import torch
from torch import nn
from curvcli import analyse
from curvcli.machine.device import give_back_freed_memory, peak_memory
from tests.oracles.jacobians import context_for

class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 4)
    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])

torch.manual_seed(0)
image = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.Tanh(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
)
wide = nn.Sequential(nn.Linear(64, 2000), nn.Tanh(), nn.Linear(2000, 20))
model, shape, samples, room, options = {
    "layers": (image, (1, 24, 24), 48, 60, {"per_layer": True, "layer_samples": 48, "max_matvecs": 12}),
    "time": (Last(), (20, 16), 300, 15, {"layer_samples": 300}),
    "kernel": (
        wide, (64,), 1500, 90, {"wrt": "parameters", "method": "golub-kahan", "max_matvecs": 20, "top": 2}
    ),
}[sys.argv[1]]
give_back_freed_memory()

def run(samples, **memory):
    context = context_for(model, torch.randn(samples, *shape), **memory)
    return analyse("jacobian", context, **options).notes

run(2)
limit = peak_memory(torch.device("cpu")) + room * 1_000_000
notes = run(samples, memory=f"{limit}B")
print(peak_memory(torch.device("cpu")) / limit, any("do not fit" in note for note in notes))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the process' peak is read from /proc")
@pytest.mark.parametrize(
    "part",
    [*(pytest.param(part, marks=pytest.mark.full) for part in ("layers", "time")), "kernel"],
)
def test_the_process_stays_within_its_memory(part: str) -> None:
    """Fewer samples are looked at where more do not fit, which is said; the peak stays below the limit."""
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, part], capture_output=True, text=True, check=True
    )
    peak, said = done.stdout.split()
    # The allocator's own pools come and go by some megabytes.
    assert float(peak) <= 1.05
    # A kernel is that of all samples or none.
    assert said == str(part != "kernel")
