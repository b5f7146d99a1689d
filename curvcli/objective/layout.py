"""How parameters become vectors, and vectors become tensors with the parameters' shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Held(NamedTuple):
    """A parameter as the network has it, and what a process holds of it."""

    name: str
    shape: torch.Size
    own: slice
    """Its entries in the part of a vector that this process holds,"""
    first: int
    """and the number, within the parameter, of the first of them."""
    position: int
    """Of what has them, in the objective's list of parameters."""
    lengths: Sequence[int] = ()
    """Entries that each process holds, where parameters are divided among several."""


@dataclass(frozen=True)
class Layout:
    """θ as one vector of length n: one parameter after the other, some without rows that play no part.

    Args:
        parameters: θ.
        rows: of parameters with untouched rows, by position: the rows that vectors have, ascending.
    """

    parameters: Sequence[nn.Parameter]
    rows: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Length of the vectors."""
        return sum(self.sizes())

    @property
    def untouched(self) -> int:
        """Entries of the parameters that vectors leave out."""
        return sum(p.numel() for p in self.parameters) - self.n

    def sizes(self) -> list[int]:
        """Entries that each parameter has in a vector."""
        return [
            p.numel() * len(self.rows[i]) // len(p) if i in self.rows else p.numel()
            for i, p in enumerate(self.parameters)
        ]

    def flatten(self, parts: Sequence[Tensor], positions: Sequence[int] | None = None) -> Tensor:
        """Tensors with the shapes of the parameters as one vector of shape (n,).

        With ``positions`` the tensors and the vector are those of these parameters only, in that order.
        """
        where = range(len(self.parameters)) if positions is None else positions
        return flatten(
            [
                part[self.rows[i]] if i in self.rows else part
                for i, part in zip(where, parts, strict=True)
            ]
        )

    def views(self, v_N: Tensor, positions: Sequence[int] | None = None) -> list[Tensor]:
        """``v_N`` cut into tensors with the shapes of the parameters: views, or copies with untouched rows zero.

        With ``positions`` the vector and the tensors are those of these parameters only, in that order.
        """
        where = range(len(self.parameters)) if positions is None else positions
        sizes = self.sizes()
        out = []
        for i, part in zip(where, v_N.split([sizes[i] for i in where]), strict=True):
            p = self.parameters[i]
            if i not in self.rows:
                out.append(part.view_as(p))
                continue
            rows_R = self.rows[i]
            zeros = torch.zeros_like(p, requires_grad=False)
            out.append(zeros.index_copy_(0, rows_R, part.view(len(rows_R), *p.shape[1:])))
        return out


def flatten(parts: Sequence[Tensor]) -> Tensor:
    """The tensors one after the other as one vector.

    >>> flatten([torch.eye(2), torch.tensor([3.0])]).tolist()
    [1.0, 0.0, 0.0, 1.0, 3.0]
    """
    return torch.cat([part.reshape(-1) for part in parts])
