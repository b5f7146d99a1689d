"""How a model is called with its data, and which of its outputs is the main one."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.errors import CurvError, ModelError
from curvcli.machine.memory import out_of_memory
from curvcli.objective.state import restart

# A layer was given whole numbers where it computes with others.
_WHOLE = re.compile(r"type.*\b(Long|Int|Byte|Char|Short|long int|int|unsigned char)\b")


def call_model(model: nn.Module, positional: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """The model's output; what goes wrong inside names the shapes that went in."""
    restart(model)
    return guarded("the model", model, *positional, **keywords)


def main_output(output: Any) -> Tensor:
    """The tensor to compare with the targets: itself, ``.logits``, or the first of a tuple or dict."""
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits  # type: ignore[no-any-return]
    values = list(output.values()) if isinstance(output, Mapping) else output
    if isinstance(output, Mapping):
        for key in ("logits", "output", "outputs", "out", "prediction"):
            if isinstance(output.get(key), Tensor):
                return output[key]  # type: ignore[no-any-return]
    if isinstance(values, tuple | list):
        for value in values:
            if isinstance(value, Tensor):
                return value
    raise ModelError(
        f"the model returned {type(output).__name__}, in which no output tensor was found",
        "return a tensor, a tuple that starts with it, or an object with .logits; or use --objective",
    )


def guarded(what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call; an ordinary exception inside becomes a sentence with the shapes that went in."""
    try:
        return function(*args, **kwargs)
    except CurvError:
        raise
    except RuntimeError as error:
        if not torch.is_grad_enabled() and "does not require grad" in str(error):
            # It takes derivatives itself (forces, residuals of equations), also where nobody asks for its own.
            with torch.enable_grad():
                return function(*args, **kwargs)
        raise _failure(what, error, args, kwargs) from error
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError) as error:
        raise _failure(what, error, args, kwargs) from error


def _failure(
    what: str, error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> BaseException:
    """The sentence for what went wrong; running out of memory stays what it is."""
    if out_of_memory(error):
        return error
    given = ", ".join([_shape(a) for a in args] + [f"{k}={_shape(v)}" for k, v in kwargs.items()])
    message = " ".join(str(error).split())
    return ModelError(
        f"{what} failed on inputs ({given}): {type(error).__name__}: {message[:300]}",
        _remedy(message, [*args, *kwargs.values()]),
    )


def _remedy(message: str, inputs: list[Any]) -> str:
    """What mends it: images often lack an axis, have it in another place, or are whole numbers."""
    dims = {v.dim() for v in inputs if isinstance(v, Tensor)}
    whole = [v for v in inputs if isinstance(v, Tensor) and v.dim() > 2 and _is_whole(v)]
    if whole:
        return (
            "the inputs are whole numbers: save them as float32, scaled as in training (pixels, for example, / 255), "
            "images as [samples, channels, height, width]"
        )
    if any(isinstance(v, Tensor) and _is_whole(v) for v in inputs) and _WHOLE.search(message):
        return "the inputs are whole numbers: save them as float32, x.astype('float32')"
    if "channels" in message and dims in ({3}, {4}):
        return (
            "images are [samples, channels, height, width] for PyTorch: x[:, None] adds the axis of one channel, "
            "x.transpose(0, 3, 1, 2) moves the last axis there"
        )
    return "check the shapes and names in the data, --input-key and --model-arg; --verbose shows the traceback"


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__
