"""Rows of embeddings that no sample looks up: neither loss, gradient nor Hessian know them.

A parameter whose only use is to be looked up has exactly zero rows of ∇L and H for all entries that the data does not
touch. That it has no other use (a tied output layer, say) is seen, not assumed: every function that is given
the parameter while the loss is evaluated on all data is watched.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from curvcli.machine.containers import tensors_in


class Lookups(TorchFunctionMode):
    """While active, watches which rows of the parameters are looked up, and which parameters are used otherwise."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self._parameters = {id(p): p for p in parameters if p.dim() > 1}
        self._touched: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` and take note of parameters among its arguments."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        found = [t for t in tensors_in((args, kwargs)) if id(t) in self._parameters]
        if found:
            indices = _looked_up(func, args, kwargs)
            # What yields no tensor (a shape, a dtype) does not use the values.
            if indices is None and any(True for _ in tensors_in(result)):
                for parameter in found:
                    self._parameters.pop(id(parameter), None)
            elif indices is not None:
                self._touch(found[0], indices)
        return result

    def _touch(self, parameter: Tensor, indices: Tensor) -> None:
        rows = self._touched.get(id(parameter))
        if rows is None:
            rows = torch.zeros(len(parameter), dtype=torch.bool, device=parameter.device)
            self._touched[id(parameter)] = rows
        rows[indices.flatten().to(rows.device)] = True

    def untouched(self, parameter: nn.Parameter, nodes: set[str]) -> Tensor | None:
        """A mask over the rows of ``parameter`` that were never looked up.

        Args:
            parameter: one of those watched.
            nodes: names of the autograd nodes that lead to it, see `uses`.

        Returns:
            None where it has another use, or every row was looked up.
        """
        rows = self._touched.get(id(parameter))
        if rows is None or id(parameter) not in self._parameters or bool(rows.all()):
            return None
        return ~rows if nodes == {"EmbeddingBackward0"} else None


def _looked_up(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The indices, if this is a lookup that changes nothing."""
    if func is F.embedding:
        if kwargs.get("max_norm") is not None or (len(args) > 3 and args[3] is not None):
            return None
        found = args[0] if args else kwargs.get("input")
    elif func is torch.embedding:
        found = args[1] if len(args) > 1 else kwargs.get("indices")
    else:
        return None
    return found if isinstance(found, Tensor) else None


def uses(total: Tensor, parameters: Sequence[nn.Parameter]) -> dict[int, set[str]]:
    """Names of the autograd nodes that lead to each parameter from ``total``, by ``id``."""
    found: dict[int, set[str]] = {id(p): set() for p in parameters}
    seen: set[Any] = set()
    waiting: list[Any] = [total.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            variable = getattr(following, "variable", None)
            if variable is not None and id(variable) in found:
                found[id(variable)].add(node.name())
            else:
                waiting.append(following)
    return found
