"""Operations that have to be told how: they have no kernel of the CPU, or are none of its business."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.device.second.memory import NAME, aten, device_tensor, host_tensor, refilled, strided
from tests.device.second.watch import note


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    if target.device.type != NAME:
        note("waiting", "copy to the host")
    elif source.device.type != NAME:
        note("uploading", "copy to the device")
    to, of = (host_tensor(t) if t.device.type == NAME else t for t in (target, source))
    to.copy_(of)
    return target


def _resize(tensor: Tensor, size: Any, memory_format: Any = None) -> Tensor:
    host = torch.empty(size, dtype=tensor.dtype)
    kept = min(host.numel(), tensor.numel())
    host.view(-1)[:kept] = host_tensor(tensor).reshape(-1)[:kept]
    return refilled(tensor, host)


def _zeros(size: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return device_tensor(torch.zeros(size, dtype=dtype))


def _convolution(x: Tensor, w: Tensor, b: Tensor | None, *geometry: Any) -> Tensor:
    bias = None if b is None else host_tensor(b)
    return device_tensor(aten.convolution.default(host_tensor(x), host_tensor(w), bias, *geometry))


def _convolution_backward(g: Tensor, x: Tensor, w: Tensor, *rest: Any) -> tuple[Any, ...]:
    *geometry, wanted = rest
    sizes = [w.shape[0]] if wanted[2] else None
    backward = aten.convolution_backward.default
    found = backward(*map(host_tensor, (g, x, w)), sizes, *geometry, wanted)
    return tuple(None if f is None else device_tensor(f) for f in found)


def _lstm_cell(x: Tensor, h: Tensor, c: Tensor, b_x: Any = None, b_h: Any = None) -> Any:
    gates = host_tensor(x) + host_tensor(h)
    for bias in (b_x, b_h):
        gates = gates if bias is None else gates + host_tensor(bias)
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    after = f * host_tensor(c) + i * g
    return tuple(map(device_tensor, (o * after.tanh(), after, torch.cat([i, f, g, o], 1))))


def _lstm_cell_backward(
    to_h: Tensor | None, to_c: Tensor | None, c: Tensor, after: Tensor, work: Tensor, has_bias: bool
) -> tuple[Any, ...]:
    i, f, g, o = host_tensor(work).chunk(4, 1)
    t = host_tensor(after).tanh()
    d_h = torch.zeros_like(t) if to_h is None else host_tensor(to_h)
    d_c = d_h * o * (1 - t * t) + (0 if to_c is None else host_tensor(to_c))
    by_i, by_f = d_c * g * i * (1 - i), d_c * host_tensor(c) * f * (1 - f)
    gates = torch.cat([by_i, by_f, d_c * i * (1 - g * g), d_h * t * o * (1 - o)], 1)
    return (
        device_tensor(gates),
        device_tensor(d_c * f),
        device_tensor(gates.sum(0)) if has_bias else None,
    )


def _gru_cell(x: Tensor, h: Tensor, before: Tensor, b_x: Any = None, b_h: Any = None) -> Any:
    of_x = host_tensor(x) if b_x is None else host_tensor(x) + host_tensor(b_x)
    of_h = host_tensor(h) if b_h is None else host_tensor(h) + host_tensor(b_h)
    (x_r, x_z, x_n), (h_r, h_z, h_n) = of_x.chunk(3, 1), of_h.chunk(3, 1)
    r, z, old = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid(), host_tensor(before)
    n = (x_n + r * h_n).tanh()
    return device_tensor(n + z * (old - n)), device_tensor(torch.cat([r, z, n, old, h_n], 1))


def _gru_cell_backward(to_h: Tensor, work: Tensor, has_bias: bool) -> tuple[Any, ...]:
    g = host_tensor(to_h)
    r, z, n, old, h_n = host_tensor(work).chunk(5, 1)
    by_z, by_n = g * (old - n) * z * (1 - z), g * (1 - z) * (1 - n * n)
    by_r = by_n * h_n * r * (1 - r)
    x, h = torch.cat([by_r, by_z, by_n], 1), torch.cat([by_r, by_z, by_n * r], 1)
    sums = (device_tensor(x.sum(0)), device_tensor(h.sum(0))) if has_bias else (None, None)
    return device_tensor(x), device_tensor(h), device_tensor(g * z), *sums


SPECIAL: dict[str, Callable[..., Any]] = {
    "aten::copy_.": _copy,
    "aten::as_strided.": strided,
    "aten::resize_.": _resize,
    "aten::_efficientzerotensor.": _zeros,
    "aten::convolution_overrideable.": _convolution,
    "aten::convolution_backward_overrideable.": _convolution_backward,
    "aten::_thnn_fused_lstm_cell.": _lstm_cell,
    "aten::_thnn_fused_lstm_cell_backward_impl.": _lstm_cell_backward,
    "aten::_thnn_fused_gru_cell.": _gru_cell,
    "aten::_thnn_fused_gru_cell_backward.": _gru_cell_backward,
}
