"""Embeddings as tables of the rows that the data looks up, within the graph of a product.

Rows that no sample looks up are left out of all vectors (`lookups`). In the graph they would still be there: every
product would fill and read tensors of the whole vocabulary's size. Here the embedding is a smaller leaf instead.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from curvcli.objective.objective import Objective


class LookedUp(TorchFunctionMode):
    """While active, lookups in embeddings with untouched rows go to leaves that hold the other rows.

    Args:
        objective: whose vectors leave the rows out: such a parameter has no use but to be looked up.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.leaves: list[Tensor] = list(objective.parameters)
        """What to differentiate by: the parameters, or their rows that are looked up."""
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}
        for i, rows_R in objective.layout.rows.items():
            weight = objective.parameters[i].detach()
            self.leaves[i] = leaf = weight[rows_R].requires_grad_()
            # Rows that have no place in the leaf are constants.
            place_V = torch.full((len(weight),), -1, device=weight.device)
            place_V[rows_R] = torch.arange(len(rows_R), device=weight.device)
            self._tables[id(objective.parameters[i])] = (leaf, place_V)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, with the smaller table where it looks something up."""
        kwargs = kwargs or {}
        if self._tables and func in _LOOKUPS:
            return self._look_up(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _look_up(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(_LOOKUPS[func], args, strict=False)) | kwargs
        ids, weight = given["indices" if func is torch.embedding else "input"], given["weight"]
        found = self._tables.get(id(weight))
        if found is None:
            return func(*args, **kwargs)
        leaf, place_V = found
        padding = given.get("padding_idx")
        if padding is not None:
            padding = int(place_V[padding])
            padding = None if padding < 0 else padding
        place = place_V[ids]
        strange = place < 0
        if not bool(strange.any()):
            return self._in_leaf(place, leaf, padding, given)
        constant = F.embedding(ids, weight.detach())
        return torch.where(
            strange[..., None], constant, self._in_leaf(place.clamp(min=0), leaf, padding, given)
        )

    def _in_leaf(self, place: Tensor, leaf: Tensor, padding: int | None, given: Any) -> Tensor:
        return F.embedding(
            place, leaf, padding, scale_grad_by_freq=given.get("scale_grad_by_freq", False)
        )


_LOOKUPS = {
    F.embedding: (
        "input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse",
    ),
    torch.embedding: ("weight", "indices", "padding_idx", "scale_grad_by_freq", "sparse"),
}  # fmt: skip
