"""Activations and their gradients, layer by layer in execution order, reduced as they pass by.

Nothing is kept but sums: hooks look at each output when it is made and at its gradient when that is made.
Calls of bare functions (``F.relu``, ``torch.tanh``, fused attention) are seen as well.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from curvcli.machine.containers import tensors_in
from curvcli.machine.private import outside_transforms, transformed
from curvcli.objective.objective import Objective
from curvcli.operators.recurrent.cells import is_recurrent_cell
from curvcli.operators.signals.activations import FUNCTIONS, ActivationCounts
from curvcli.operators.signals.attention import (
    SAMPLES,
    entropy_of_multi_head,
    entropy_of_scores,
    head_entropy,
)
from curvcli.operators.signals.layers import (
    has_weights,
    is_container,
    is_leaf,
    is_norm,
    norm_gain,
    normalises_channels_first,
    replaced,
)
from curvcli.operators.signals.records import (
    AttentionCall,
    CellLoop,
    RecurrentCall,
    Signal,
    detached,
    keeper,
)
from curvcli.operators.signals.reductions import Reduction
from curvcli.operators.signals.trunk import trunk

# Samples of a recurrent layer's input that are kept for unrolling it.
RECURRENT_SAMPLES = 32

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
)  # fmt: skip
_CHANNELS_LAST = (nn.Linear, nn.Embedding, nn.RNNBase, nn.LayerNorm, nn.MultiheadAttention)
_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
_LOOKED_AT = {
    *FUNCTIONS, *_SOFTMAX, F.scaled_dot_product_attention, F.multi_head_attention_forward
}  # fmt: skip


@dataclass(eq=False)
class _Frame:
    """A module whose forward is running."""

    name: str
    module: nn.Module
    signal: Signal | None
    differentiated: bool
    inner_calls: int = 0
    outcome: ActivationCounts | None = None
    """Where the module's output, that of an activation function, is still to be counted."""


class Recorder(TorchFunctionMode):
    """Hooks on every module of an objective's model, and a look at every torch function it calls.

    Hooks are there inside `watching`; functions are looked at while the recorder is entered as a context itself.

    Args:
        objective: whose model is watched.
        count_nonfinite: count NaN and Inf entries.
        clone_views: pass on a copy where a layer's output is a view: an in-place operation on a view
            takes the gradient past the layer.
        details: also record attention and recurrent layers.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        count_nonfinite: bool = False,
        clone_views: bool = True,
        details: bool = True,
    ) -> None:
        super().__init__()
        self.signals: dict[tuple[str, bool], Signal] = {}
        self.recurrent: list[RecurrentCall] = []
        self.loops: list[CellLoop] = []
        self.attention: dict[str, AttentionCall] = {}
        self._objective = objective
        self._count_nonfinite = count_nonfinite
        self._clone_views = clone_views
        self._details = details
        self._names = {id(m): n or type(m).__name__ for n, m in objective.model.named_modules()}
        self._recurrent_samples: Counter[str] = Counter()
        self._trunk_is_known = False
        self.begin(1)

    def begin(self, samples: int) -> None:
        """A new piece of the data, of so many samples."""
        self._samples = samples
        self._calls: Counter[str] = Counter()
        self._frames: list[_Frame] = []
        self._depth = 0
        self._channels_first = False
        self._by_node: dict[tuple[Any, int], Signal] = {}
        self._loops: dict[str, CellLoop] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks are on."""
        handles = []
        for name, module in self._objective.model.named_modules():
            # A parametrised weight is computed by modules of its own, which are no layers.
            if "parametrizations" in name or isinstance(module, torch.jit.ScriptModule):
                continue
            handles.append(module.register_forward_pre_hook(outside_transforms(self._enter)))
            leave = outside_transforms(self._leave)  # before a block lets go of gathered weights
            first = self._objective.ranks.parted
            handles.append(module.register_forward_hook(leave, with_kwargs=True, prepend=first))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def find_trunk(self, loss: Tensor) -> None:
        """Tell the trunk from branches, from the graph of the first piece."""
        if self._trunk_is_known or loss.grad_fn is None:
            return
        self._trunk_is_known = True
        found = trunk(loss.grad_fn, (n for (n, _), s in self._by_node.items() if s.leaf))
        for (node, _), signal in self._by_node.items():
            signal.on_trunk |= node in found

    def end(self) -> None:
        """The piece is done: its graph is let go of."""
        self._by_node = {}
        for loop in self._loops.values():
            loop.latest = ()

    # What modules do

    def _enter(self, module: nn.Module, _inputs: Any) -> None:
        with torch._C.DisableTorchFunction():
            self._open(module)

    def _open(self, module: nn.Module) -> None:
        if self._frames:
            self._frames[-1].inner_calls += 1
        name, signal = self._names[id(module)], None
        if is_leaf(module):
            self._depth += has_weights(module)
            signal = self._signal(name, type(module).__name__, module, leaf=True)
        self._frames.append(_Frame(name, module, signal, torch.is_grad_enabled()))

    def _leave(self, module: nn.Module, inputs: Any, keywords: dict[str, Any], output: Any) -> Any:
        # Nothing that is done here is an operation of the network.
        with torch._C.DisableTorchFunction():
            return self._look(self._frames.pop(), inputs, keywords, output)

    def _look(self, frame: _Frame, inputs: Any, keywords: dict[str, Any], output: Any) -> Any:
        """Reduce what a module returned; what to return in its place, or None."""
        module, signal = frame.module, frame.signal
        outputs = [t for t in tensors_in(output) if t.is_floating_point()]
        if signal is None and frame.inner_calls == 0 and not is_container(module):
            # Its parts are used without being called (nn.MultiheadAttention).
            if has_weights(module):
                self._depth += 1
            signal = self._signal(frame.name, type(module).__name__, module, leaf=True)
        if signal is None:
            self._watch_sum(frame, outputs)
            return None
        if isinstance(module, _CHANNELS_FIRST):
            self._channels_first = True
        elif isinstance(module, _CHANNELS_LAST):
            self._channels_first = False
        if isinstance(module, nn.LayerNorm | nn.RMSNorm) and inputs:
            self._channels_first = normalises_channels_first(module, inputs[0])
            signal.norm_gains.append(norm_gain(module, inputs[0]))
        if is_norm(module) and inputs and isinstance(inputs[0], Tensor):
            key = (inputs[0].grad_fn, inputs[0].output_nr)
            if (before := self._by_node.get(key)) is not None:
                before.normalised = True
        copies = {}
        if self._clone_views:
            copies = {id(t): t.clone() for t in outputs if t.requires_grad and t._is_view()}
            outputs = [copies.get(id(t), t) for t in outputs]
            output = replaced(output, copies)
        # Whether h is computed from the very tensor that is returned as c differs between kernels, and with it ∂L/∂c.
        self._watch(signal, outputs[:1] if is_recurrent_cell(module) else outputs, frame.outcome)
        if self._details and isinstance(module, nn.RNNBase) and inputs:
            self._keep_recurrent(module, inputs, keywords, output)
        if self._details and is_recurrent_cell(module) and inputs:
            self._keep_step(module, inputs, keywords, output)
        return output if copies else None

    def _watch_sum(self, frame: _Frame, outputs: list[Tensor]) -> None:
        """The output of a module with layers inside: a tensor of its own, or a layer's?"""
        if len(outputs) != 1 or outputs[0].grad_fn is None:
            return
        if (outputs[0].grad_fn, outputs[0].output_nr) not in self._by_node:
            kind = type(frame.module).__name__
            self._watch(self._signal(frame.name, kind, frame.module, leaf=False), outputs)

    def _signal(self, name: str, kind: str, module: nn.Module | None, leaf: bool) -> Signal:
        self._calls[name] += 1
        call = self._calls[name]
        full = name if call == 1 else f"{name}#{call}"
        signal = self.signals.get((full, leaf))
        if signal is None:
            signal = Signal(
                full, kind, module, call, leaf, self._depth, Reduction(), Reduction(False)
            )
            self.signals[full, leaf] = signal
        return signal

    def _watch(
        self, signal: Signal, outputs: Sequence[Tensor], counts: ActivationCounts | None = None
    ) -> None:
        samples, sequence, bad = self._samples, not self._channels_first, self._count_nonfinite

        def backward(gradient: Tensor | None) -> None:
            if gradient is not None:  # of several outputs one that the loss does not depend on
                signal.gradient.see(gradient, samples, sequence, bad)

        for tensor in outputs:
            node = tensor.grad_fn
            key = (node, tensor.output_nr)
            known = self._by_node.get(key) if node is not None else None
            if known is not None and len(outputs) == 1:
                signal.same_as = known
                return
            # The final states of a recurrent layer repeat its output, or are no output (c).
            if tensor is outputs[0] or not isinstance(signal.module, nn.RNNBase):
                signal.activation.see(tensor, samples, sequence, bad)
            if counts is not None:
                counts.after(tensor)
            if node is not None:
                self._by_node[key] = signal
                tensor.register_hook(backward)

    def _keep_recurrent(
        self, module: nn.RNNBase, inputs: Any, keywords: dict[str, Any], output: Any
    ) -> None:
        name = self._names[id(module)]
        if self._recurrent_samples[name] >= RECURRENT_SAMPLES:
            return
        self._recurrent_samples[name] += self._samples
        values, final = output
        hx = inputs[1] if len(inputs) > 1 else keywords.get("hx")
        call = RecurrentCall(name, module, detached(inputs[0]), hx, detached(values))
        self.recurrent.append(call)

        def keep_output(gradient: Tensor | None) -> None:
            call.output_gradient = None if gradient is None else gradient.detach()

        data = values.data if isinstance(values, PackedSequence) else values
        if data.requires_grad:
            data.register_hook(keep_output)
        for index, state in enumerate(tensors_in(final)):
            if state.requires_grad:
                state.register_hook(keeper(call.final_gradients, index))

    def _keep_step(
        self, module: nn.Module, inputs: Any, keywords: dict[str, Any], output: Any
    ) -> None:
        """One call of a cell: a step of the loop that it is called in."""
        name = self._names[id(module)]
        x, hx = inputs[0], inputs[1] if len(inputs) > 1 else keywords.get("hx")
        loop = self._loops.get(name)
        if loop is None:
            if self._recurrent_samples[name]:
                return  # one piece of the data is enough
            self._recurrent_samples[name] += self._samples
            assert isinstance(module, nn.RNNCellBase)
            loop = self._loops[name] = CellLoop(name, module)
            self.loops.append(loop)
        loop.step(x, hx, output)

    # What functions do

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called for every torch function; the interesting ones are looked at."""
        kwargs = kwargs or {}
        if func not in _LOOKED_AT or transformed(unknown=False):
            return func(*args, **kwargs)
        # The forward of an autograd.Function is one operation: no gradient passes what it calls.
        inner = not self._frames or self._frames[-1].differentiated > torch.is_grad_enabled()
        if func in FUNCTIONS and not inner and args and isinstance(args[0], Tensor):
            return self._activate(func, args, kwargs)
        if inner or not self._details:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self._attend(lambda: head_entropy(*args, **kwargs), fused=True)
        elif func is F.multi_head_attention_forward:
            self._attend(lambda: entropy_of_multi_head(func, args, kwargs), fused=True)
        elif func in _SOFTMAX and isinstance(args[0], Tensor) and args[0].dim() == 4:
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if axis in (-1, 3):
                self._attend(lambda: entropy_of_scores(args[0]), fused=False)
        return func(*args, **kwargs)

    def _activate(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        activation, frame = FUNCTIONS[func], self._frames[-1]
        signal = frame.signal
        inside = signal is not None
        if signal is None:
            prefix = "" if frame.module is self._objective.model else f"{frame.name}."
            signal = self._signal(f"{prefix}{activation.name}()", activation.name, None, True)
        if signal.counts is None:
            signal.counts = ActivationCounts(activation)
        x = args[0]
        mine = signal.counts.activation is activation
        if mine:
            signal.counts.before(x, 1 if self._channels_first and x.dim() > 2 else -1)
        y = func(*args, **kwargs)
        flattens = activation.derivative is not None
        if not inside:
            self._watch(signal, [y], signal.counts if mine and flattens else None)
        elif mine and flattens:
            if type(frame.module).__module__ == nn.Tanh.__module__:
                frame.outcome = signal.counts
            else:
                signal.counts.after(y)
        return y

    def _attend(self, entropy: Callable[[], Tensor], fused: bool) -> None:
        frame = self._frames[-1]
        name = f"{frame.name}.attention"
        self._calls[name] += 1
        full = frame.name if self._calls[name] == 1 else f"{frame.name}#{self._calls[name]}"
        call = self.attention.setdefault(full, AttentionCall(full, fused))
        if sum(call.samples) < SAMPLES:
            call.samples.append(self._samples)
            call.entropies.append(entropy())
