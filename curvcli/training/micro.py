"""What the gradients of micro-batches say of each other, from `.grad` as it grows.

Shapes: ``P`` micro-batches, ``N`` parameters.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from curvcli.linalg.statistics.gradient_noise import noise_estimates


class MicroBatches:
    """The gradients of one accumulation, each as what its backward pass added."""

    def __init__(self) -> None:
        self._before_N: Tensor | None = None
        self._gradients: list[Tensor] = []
        self._samples: list[float] = []

    def add(self, parameters: Iterable[nn.Parameter], samples: int) -> None:
        """A backward pass over ``samples`` has ended."""
        parts = [
            (torch.zeros_like(p) if p.grad is None else p.grad.detach()).reshape(-1).float()
            for p in parameters
            if p.requires_grad
        ]
        now_N = torch.cat(parts)
        self._gradients.append(now_N if self._before_N is None else now_N - self._before_N)
        self._samples.append(float(samples))
        self._before_N = now_N

    def clear(self) -> None:
        """The optimizer has stepped."""
        self._before_N, self._gradients, self._samples = None, [], []

    def figures(self) -> dict[str, float]:
        """Cosines between the gradients, and the noise scale (McCandlish et al. 2018); nothing of fewer than two.

        A factor in the loss that is common to all, such as that of GradScaler or one over the number of
        micro-batches, changes none of them.
        """
        if len(self._gradients) < 2:
            return {}
        g_PN = torch.stack(self._gradients)
        g_PN = g_PN / g_PN.abs().max().clamp_min(torch.finfo(g_PN.dtype).tiny)
        gram_PP = (g_PN @ g_PN.T).double()
        norms_P = gram_PP.diagonal().sqrt()
        cosines_PP = gram_PP / (norms_P[:, None] * norms_P)
        rows, columns = torch.triu_indices(len(gram_PP), len(gram_PP), 1)
        pairs = cosines_PP[rows, columns]
        found = {}
        if bool(pairs.isfinite().all()):
            found = {
                "micro.cosine_mean": float(pairs.mean()),
                "micro.cosine_min": float(pairs.min()),
            }
            found["micro.conflicts"] = float((pairs < 0).double().mean())
        samples_P = torch.tensor(self._samples, dtype=torch.float64).numpy()
        (noise,) = noise_estimates(gram_PP.cpu().numpy()[None], samples_P)
        if noise is not None and noise.critical_batch is not None:
            found["micro.noise_scale"] = noise.critical_batch.value
            if noise.critical_batch.standard_error is not None:
                found["micro.noise_scale_error"] = noise.critical_batch.standard_error
        return found
