"""Networks with complex tensors: their curvature is that of the real and the imaginary parts."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from curvcli.errors import some
from curvcli.linalg.storage import HOST, move_to_file
from curvcli.machine.containers import cast


class _Complex(nn.Module):
    """Complex numbers from their real and imaginary parts."""

    def forward(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Real parts and imaginary parts -> complex numbers."""
        return torch.complex(real, imaginary)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Complex numbers -> real and imaginary parts."""
        return value.real.clone(), value.imag.clone()


def with_real_parameters(model: nn.Module) -> list[str]:
    """Each complex parameter is computed from a real one of its parts from now on; notes.

    A parameter that several modules share stays one parameter.
    """
    shared: dict[int, tuple[Tensor, Tensor]] = {}
    named = []
    for prefix, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_complex():
                continue
            parametrize.register_parametrization(module, name, _Complex(), unsafe=True)
            held = module.get_submodule(f"parametrizations.{name}")
            parts = shared.setdefault(id(parameter), (held.original0, held.original1))
            held.original0, held.original1 = parts
            named.append(f"{prefix}.{name}" if prefix else name)
    if not named:
        return []
    return [
        f"the parameters of {some(named)} are real and imaginary parts, as pairs of real numbers"
    ]


def cast_model(
    model: nn.Module, device: torch.device, dtype: torch.dtype, offload: str | None = None
) -> nn.Module:
    """The model on ``device`` in ``dtype``; complex buffers stay complex, in the same precision.

    Args:
        model: is changed in place.
        device: computes.
        dtype: of the weights.
        offload: a folder for a file of weights that a CPU computes with, see `linalg.storage`.
    """
    if any(buffer.is_complex() for buffer in model.buffers()):
        model._apply(lambda tensor: cast(tensor, device, dtype))
    else:
        model.to(device=device, dtype=dtype)
    if offload not in (None, HOST) and device.type == "cpu":
        move_to_file(list(model.parameters()), offload)
    return model
