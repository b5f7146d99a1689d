"""Layers in a form whose pullback (the product with the transposed Jacobian) costs less than torch's own.

Only while no gradient of the layers' own parameters is wanted, and only for values and derivatives equal up to
rounding:

- Batch normalisation with fixed statistics is one multiply-add for each channel; behind a convolution its
  factors go into the convolution's weights on the way back.
- A convolution of few channels over few pixels is pulled back by the matrix that it is. Convolution kernels on CPUs
  work on blocks of channels (oneDNN: 16) and waste what the layer does not fill.
- In float32 on CPUs images have their channels last, which saves the kernels for convolutions and pools putting them
  in another order; a convolution without stride is pulled back by a convolution with the mirrored weights.
- Of a rectifier and a maximum pool behind them, the rectifier acts on what the pool has left.
- A mean over all pixels is divided before it is spread, not after.

Each pullback is made of differentiable operations: products with J differentiate it again.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from curvcli.machine.device import convolution_block
from curvcli.operators.autodiff.convolution import allow_views

# Entries of a convolution's matrix at most: 1 MB in float32, within a core's cache.
_MATRIX_ENTRIES = 1 << 18
# Multiply-adds of a matrix product that take as long as one of the kernels for convolutions in float64, which spread
# columns over the image (measured: 90 against 30 GFLOP/s).
_SPREADING = 2


class Shortcuts(TorchFunctionMode):
    """While active, layers are called in the form that is pulled back at the least cost."""

    def __init__(self) -> None:
        super().__init__()
        self._latest: _Latest | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` or its cheaper form."""
        kwargs = kwargs or {}
        if _replayed():
            return func(*args, **kwargs)
        allow_views(func, args)
        if func in _CONVOLUTIONS:
            result = self._convolution(func, *args, **kwargs)
        elif func is F.batch_norm:
            result = self._batch_norm(*args, **kwargs)
        elif func in _RECTIFIERS:
            result = self._rectifier(func, *args, **kwargs)
        elif func is F.max_pool2d:
            result = self._max_pool(*args, **kwargs)
        elif func is F.adaptive_avg_pool2d:
            result = _mean(*args, **kwargs)
        else:
            result = None
        return func(*args, **kwargs) if result is None else result

    def _convolution(
        self,
        func: Callable[..., Tensor],
        input: Tensor,  # torch's name
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:
        """The convolution, remembered in case that batch normalisation follows; None: not one of these."""
        if groups != 1 or isinstance(padding, str) or input.dim() != weight.dim():
            return None
        if not _constant(input, weight, bias):
            return None
        convolution = _Convolution(func, weight, (stride, padding, dilation), input)
        with torch.no_grad():
            value = convolution.value(input, bias)
        output: Tensor = _Linear.apply(input, lambda: value, convolution.pull)
        self._latest = _Latest(output, output._version, input, convolution.pull, convolution)
        return output

    def _batch_norm(
        self,
        input: Tensor,  # torch's name
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:
        """y = s x + (b − s mean) with s = w / √(var + eps); None where that is not what is asked for."""
        if training or running_mean is None or running_var is None or input.dim() < 2:
            return None
        if not _constant(input, running_mean, running_var, weight, bias):
            return None
        scale_C = torch.rsqrt(running_var + eps)
        if weight is not None:
            scale_C = scale_C * weight
        shift_C = -scale_C * running_mean
        if bias is not None:
            shift_C = shift_C + bias
        shape = (-1, *[1] * (input.dim() - 2))
        shift, scale = shift_C.view(shape), scale_C.view(shape)
        latest = self._before(input)
        if latest is None or latest.convolution is None:
            return torch.addcmul(shift, input, scale)
        with torch.no_grad():
            value = torch.addcmul(shift, input, scale)
        pull = latest.convolution.scaled(scale_C).pull
        output: Tensor = _Linear.apply(latest.source, lambda: value, pull)
        self._latest = _Latest(output, output._version, latest.source, pull)
        return output

    def _rectifier(
        self,
        func: Callable[..., Tensor],
        input: Tensor,  # torch's name
        inplace: bool = False,
    ) -> Tensor:
        """The rectifier itself, remembered in case that a maximum pool follows."""
        latest = self._before(input)
        output = func(input, inplace) if func is F.relu else func(input)
        if latest is not None:
            self._latest = _Latest(
                output, output._version, latest.source, latest.pull, rectified=True
            )
        return output

    def _max_pool(
        self,
        input: Tensor,  # torch's name
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor | None:
        """The pool and what is before it as one map; None where that is not a rectified convolution."""
        latest = self._before(input)
        if latest is None or not latest.rectified or return_indices or input.dim() != 4:
            return None
        kernel, padding, dilation = (_each(o, 2) for o in (kernel_size, padding, dilation))
        options = (kernel, _each(stride, 2) if stride else kernel, padding, dilation, ceil_mode)
        with torch.no_grad():
            # With channels last the kernel takes a tenth of the time.
            given = input.detach().contiguous(memory_format=torch.channels_last)
            value, indices = F.max_pool2d(given, *options, return_indices=True)

        def pull(gradient: Tensor) -> Tensor:
            left = torch.ops.aten.threshold_backward.default(gradient, value, 0)
            spread = torch.ops.aten.max_pool2d_with_indices_backward.default(
                left, given, *options, indices
            )
            return latest.pull(spread)

        output: Tensor = _Linear.apply(latest.source, value.clone, pull)
        return output

    def _before(self, input: Tensor) -> "_Latest | None":
        """What is known of the input if it is, unchanged, what the latest layer gave."""
        latest, self._latest = self._latest, None
        known = latest is not None and latest.output is input and latest.version == input._version
        return latest if known else None


class _Latest(NamedTuple):
    """A layer's output and how it is pulled back."""

    output: Tensor
    version: int
    source: Tensor
    pull: Callable[[Tensor], Tensor]
    """From the output, before the rectifier if there is one, to the source."""
    convolution: "_Convolution | None" = None
    rectified: bool = False


class _Convolution:
    """A convolution as a linear map of each sample."""

    def __init__(
        self,
        func: Callable[..., Tensor],
        weight: Tensor,
        options: tuple[Any, Any, Any],
        input: Tensor,  # torch's name
    ) -> None:
        self._func, self._weight = func, weight
        self._options = tuple(_each(o, input.dim() - 2) for o in options)
        sizes = zip(input.shape[2:], weight.shape[2:], *self._options, strict=True)
        pixels = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
        self._shape, self._target = input.shape[1:], (weight.shape[0], *pixels)
        self._channels_last = _images(input)
        # Of the input only shape and order count, but torch asks for all of it.
        self._input = None if self.as_matrix else self._ordered(input.detach())

    def scaled(self, scale_C: Tensor) -> "_Convolution":
        """The same, with its output channels multiplied."""
        scale = scale_C.view(-1, *[1] * (self._weight.dim() - 1))
        result = copy(self)
        result.__dict__.pop("_mirrored", None)
        result._weight = self._weight * scale
        if self.as_matrix:
            rows = self._flat((scale[:, 0] * self._weight.new_ones(self._target))[None])
            result._matrix = self._matrix * rows.T
        return result

    def value(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution itself."""
        if self.as_matrix:
            images = self._shaped(self._flat(x) @ self._matrix.T, self._target)
            return images if bias is None else images + bias.view(-1, *[1] * (x.dim() - 2))
        return self._ordered(self._func(self._ordered(x), self._weight, bias, *self._options))

    @cached_property
    def as_matrix(self) -> bool:
        """Whether the product with its matrix takes fewer multiply-adds than kernels for convolutions."""
        inputs, outputs = math.prod(self._shape), math.prod(self._target)
        block = convolution_block(self._weight.device, self._weight.dtype)
        if block is None or not 0 < inputs * outputs <= _MATRIX_ENTRIES:
            return False
        channels, window = self._shape[0], math.prod(self._weight.shape[2:])
        done = math.ceil(channels / block) * block * window
        return inputs <= (done if block > 1 else _SPREADING * done)

    def pull(self, gradient: Tensor) -> Tensor:
        """The product with its transpose."""
        if self.as_matrix:
            return self._shaped(self._flat(gradient) @ self._matrix, self._shape)
        stride, padding, dilation = self._options
        none = [0] * len(stride)
        if self._rest is not None:
            mirrored: Tensor = torch.ops.aten.convolution.default(
                gradient, self._mirrored, None, stride, self._rest, dilation, False, none, 1
            )
            return mirrored
        pulled: Tensor = torch.ops.aten.convolution_backward.default(
            gradient, self._input, self._weight, None, stride, padding, dilation,
            False, none, 1, [True, False, False],
        )[0]  # fmt: skip
        return pulled

    @cached_property
    def _matrix(self) -> Tensor:
        """Outputs × inputs: the convolution of every unit image."""
        inputs = math.prod(self._shape)
        with torch.no_grad():
            units = torch.eye(inputs, dtype=self._weight.dtype, device=self._weight.device)
            images = self._func(
                self._shaped(units, self._shape), self._weight, None, *self._options
            )
            return self._flat(images).T.contiguous()

    @cached_property
    def _rest(self) -> list[int] | None:
        """Padding with which a convolution with mirrored weights is the transposed one; None: not to be used."""
        stride, padding, dilation = self._options
        if not self._channels_last or any(s > 1 for s in stride):
            return None
        window = self._weight.shape[2:]
        rest = [d * (k - 1) - p for d, k, p in zip(dilation, window, padding, strict=True)]
        return rest if min(rest) >= 0 else None

    def _ordered(self, images: Tensor) -> Tensor:
        """With channels last if kernels work best so."""
        return (
            images.contiguous(memory_format=torch.channels_last) if self._channels_last else images
        )

    def _flat(self, images: Tensor) -> Tensor:
        """Each sample's entries in a row, in the order of the images."""
        return (images.movedim(1, -1) if self._channels_last else images).flatten(1)

    def _shaped(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Images from their entries."""
        channels, *pixels = shape
        if self._channels_last:
            return rows.view(len(rows), *pixels, channels).movedim(-1, 1)
        return rows.view(len(rows), channels, *pixels)

    @cached_property
    def _mirrored(self) -> Tensor:
        """The weights with which a convolution is the transposed one."""
        swapped = self._weight.flip(2, 3).transpose(0, 1)
        return swapped.contiguous(memory_format=torch.channels_last)


class _Linear(torch.autograd.Function):
    """A linear map whose value is known, with its pullback."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, value: Callable[[], Tensor], pull: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.pull = pull
        return value()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.pull(gradients[0]), None, None


_CONVOLUTIONS = {torch.conv1d, torch.conv2d}
_RECTIFIERS = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}


def _constant(input: Tensor, *own: Tensor | None) -> bool:
    """Whether only the input is differentiated, in one precision, and by autograd's reverse mode."""
    given = [t for t in own if t is not None]
    return (
        input.requires_grad
        and input.is_floating_point()
        and all(t.dtype == input.dtype and not t.requires_grad for t in given)
        and not torch.is_autocast_enabled(input.device.type)
        and not torch._C._are_functorch_transforms_active()
    )


def _images(input: Tensor) -> bool:
    """Whether kernels work best on this tensor with the channels last."""
    return input.dim() == 4 and convolution_block(input.device, input.dtype) == 16


def _replayed() -> bool:
    """Whether this will be run again in the backward pass (checkpoints), where what is saved must be the same."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def _mean(input: Tensor, output_size: Any) -> Tensor | None:
    """The mean over all pixels; None where something else is asked for."""
    if output_size not in (1, (1, 1), [1, 1]) or input.dim() < 3 or not _constant(input):
        return None
    return input.sum((-2, -1), keepdim=True) / (input.shape[-2] * input.shape[-1])


def _each(option: Any, rank: int) -> list[int]:
    """An option of a convolution for each axis."""
    return [option] * rank if isinstance(option, int) else list(option) * (rank // len(option))
