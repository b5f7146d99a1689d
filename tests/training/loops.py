"""Small training loops, and all that a measurement must leave as it is."""

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

X, Y = (
    torch.randn(64, 8, generator=torch.Generator().manual_seed(1)),
    torch.randint(3, (64,), generator=torch.Generator().manual_seed(2)),
)


class Draws(nn.Module):
    """Draws numbers at every call, as layers that are skipped at random do, and computes nothing from them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        random.random(), np.random.rand(), torch.rand(1)
        return x


def network() -> nn.Module:
    """Has dropout, running statistics and units that can die, and draws random numbers of three kinds."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3), Draws()
    )


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """The state that training goes on from."""
    return [
        [t.clone() for t in model.state_dict().values()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [m.training for m in model.modules()],
        [list(getattr(m, kind)) for m in model.modules() for kind in _HOOKS],
        [list(getattr(nn.modules.module, f"_global{kind}")) for kind in _HOOKS],
        [p.requires_grad for p in model.parameters()],
        [
            v.clone() if isinstance(v, torch.Tensor) else v
            for s in optimizer.state.values()
            for v in s.values()
        ],
        torch.get_rng_state(),
        random.getstate(),
        list(np.random.get_state()),
        torch.is_autocast_enabled("cpu"),
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cudnn.enabled,
        torch.backends.mkldnn.enabled,
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        list(warnings.filters),
    ]


_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """To the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def train(
    watch: Callable[[nn.Module, torch.optim.Optimizer], Callable[[], object]] | None,
    steps: int = 12,
    wrap: Callable[[nn.Module], nn.Module] = lambda m: m,
    amp: bool = False,
) -> tuple[list[float], list[Any]]:
    """Losses, and the state at the end; data is drawn by torch, NumPy and Python."""
    random.seed(0)
    np.random.seed(0)
    model = wrap(network())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", enabled=amp)
    after = watch(model, optimizer) if watch else lambda: None
    losses = []
    for _ in range(steps):
        rows = torch.randperm(64)[: 16 + random.randrange(8)]
        noise = torch.from_numpy(np.random.rand(len(rows), 8)).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = F.cross_entropy(model(X[rows] + noise), Y[rows])
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            after()  # inside of autocast, with gradients in place
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, [*everything(model, optimizer), sorted(scaler.state_dict().items())]
