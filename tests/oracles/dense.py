"""Reference answers that share no code with what they test.

Dense Hessians come from forward-over-reverse differentiation (`torch.func.hessian`) of a loss written
out here, in float64; the program multiplies by reverse-over-reverse in its own dtype.
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
}

MEANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda out, y: -torch.log_softmax(out, 1)[torch.arange(len(y)), y].mean(),
    "mse": lambda out, y: ((out - y) ** 2).mean(),
    "bce_with_logits": lambda out, y: (F.softplus(out) - y * out).mean(),
    "huber": lambda out, y: torch.where(
        (out - y).abs() <= 1, 0.5 * (out - y) ** 2, (out - y).abs() - 0.5
    ).mean(),
}


def random_network(
    seed: int, sizes: list[int], activation: str, scale: float = 1.0
) -> nn.Sequential:
    """A fully connected network with seeded weights."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(n_in, n_out)
        with torch.no_grad():
            linear.weight.copy_(scale * torch.randn(n_out, n_in, generator=generator) / n_in**0.5)
            linear.bias.copy_(0.1 * torch.randn(n_out, generator=generator))
        layers.append(linear)
        if i < len(sizes) - 2:
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


def random_data(
    seed: int, samples: int, inputs: int, outputs: int, loss: str
) -> tuple[Tensor, Tensor]:
    """Inputs and targets that suit the loss."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, inputs, generator=generator)
    if loss == "cross_entropy":
        return x, torch.randint(0, outputs, (samples,), generator=generator)
    y = torch.randn(samples, outputs, generator=generator)
    return x, (y > 0).float() if loss == "bce_with_logits" else y


def dense_hessian(
    model: nn.Module, x: Tensor, y: Tensor, loss: str, weight_decay: float = 0.0
) -> Tensor:
    """∇²L over all parameters, (n, n), float64."""
    return dense_hessian_of(
        model,
        lambda m, p: MEANS[loss](torch.func.functional_call(m, p, (x.double(),)), _as_double(y)),
        weight_decay,
    )


def dense_hessian_of(
    model: nn.Module,
    value: Callable[[nn.Module, dict[str, Tensor]], Tensor],
    weight_decay: float = 0.0,
) -> Tensor:
    """∇² of value(model, parameters), (n, n), float64."""
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    shapes = [p.shape for n, p in model.named_parameters() if p.requires_grad]
    sizes = [s.numel() for s in shapes]
    theta = torch.cat(
        [p.detach().double().reshape(-1) for p in model.parameters() if p.requires_grad]
    )

    def of_flat(flat: Tensor) -> Tensor:
        parts = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        return value(model, dict(zip(names, parts, strict=True)))

    h_NN: Tensor = torch.func.hessian(of_flat)(theta)
    return h_NN + weight_decay * torch.eye(len(theta), dtype=torch.float64)


def _as_double(y: Tensor) -> Tensor:
    return y.double() if y.is_floating_point() else y
