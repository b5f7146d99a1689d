"""What a `signals.Recorder` keeps: one record for each call of a layer."""

from dataclasses import dataclass, field
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from curvcli.machine.containers import tensors_in
from curvcli.operators.signals.activations import ActivationCounts
from curvcli.operators.signals.reductions import Reduction


@dataclass(eq=False)
class Signal:
    """One call of a layer: what went out of it, and the gradient that came back."""

    name: str
    """Path of the module; ``#2`` and so on for later calls; ``relu()`` is a bare function in a module."""
    kind: str
    module: nn.Module | None
    call: int
    leaf: bool
    """False: the output of a module with layers inside, where it is a tensor of its own (a residual sum)."""
    depth: int
    """Layers with weights executed up to and including this one."""
    activation: Reduction
    gradient: Reduction
    counts: ActivationCounts | None = None
    on_trunk: bool = False
    same_as: "Signal | None" = None
    """The layer whose very tensor this one passed on (identity, dropout in eval mode)."""
    normalised: bool = False
    """Whether a normalisation takes this very tensor: its gradient grows as the tensor is made smaller."""
    norm_gains: list[Tensor] = field(default_factory=list)
    """LayerNorm, RMSNorm: RMS(weight) · mean(1/σ) of each piece."""


@dataclass(eq=False)
class RecurrentCall:
    """What is needed to unroll one call of a recurrent module: input, output, gradient of the output."""

    name: str
    module: nn.RNNBase
    inputs: Any
    hx: Any
    output: Tensor | PackedSequence
    output_gradient: Tensor | None = None
    final_gradients: dict[int, Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class CellLoop:
    """The calls of one cell in a loop over the steps of a sequence, of one piece of the data."""

    name: str
    module: nn.RNNCellBase
    start: tuple[Tensor, ...] = ()
    """State given to the first call; empty: zeros."""
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    """h after each step."""
    latest: tuple[Tensor, ...] = ()
    """What the last call returned, in the graph: empty when the forward pass is over."""
    chained: bool = True
    """Whether every call was given exactly the state that the one before returned."""

    def step(self, x: Tensor, hx: Any, output: Any) -> None:
        """One call: its input, the state it was given, what it returned."""
        given = tuple(tensors_in(hx))
        if not self.inputs:
            self.start = tuple(t.detach() for t in given)
        elif len(given) != len(self.latest) or not all(map(is_, given, self.latest)):
            self.chained = False
        if self.chained:
            self.latest = tuple(tensors_in(output))
            self.inputs.append(x.detach().clone())
            self.outputs.append(self.latest[0].detach())


@dataclass(eq=False)
class AttentionCall:
    """Entropies of one attention, by head, one tensor for each piece."""

    name: str
    fused: bool
    entropies: list[Tensor] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    """Samples of each piece."""


def detached(values: Any) -> Any:
    """A tensor or a packed sequence without its graph."""
    return (
        values._replace(data=values.data.detach())
        if isinstance(values, PackedSequence)
        else values.detach()
    )


def keeper(kept: dict[int, Tensor], index: int) -> Any:
    """A hook that puts a gradient at its place."""

    def keep(gradient: Tensor | None) -> None:
        if gradient is not None:
            kept[index] = gradient.detach()

    return keep
