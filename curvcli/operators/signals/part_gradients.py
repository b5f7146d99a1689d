"""Weight gradients of several parts of a batch from one pass over all of it.

A layer's weight gradient is a sum over samples of products of its input and the gradient of its output. `PartGradients`
sees both where a torch function is called with a parameter, and adds them up by part. What it cannot know, it asks:
the parts must add up to the gradient of the whole, and that of the first sample must be what that sample gives alone
(which shows where the first axis is not the sample). Else the parts are to be run one by one.

Shapes: ``P`` parts, ``N`` samples of a part, ``B`` samples in all, ``C`` channels.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor], list[Tensor]]
"""(input (P, N, …), gradient of the output (P, N, …)) -> gradient by part of each parameter, (P, …)."""


class _Weight(NamedTuple):
    """A tensor that is a function of one parameter alone, without samples."""

    parameter: int
    lift: Callable[[Tensor], Tensor]
    """Gradient by part of the tensor -> of the parameter."""
    tensor: Tensor
    """Kept, so that its id stays its own."""


class Use(NamedTuple):
    """What one function call tells."""

    parameters: list[int]
    rule: Rule
    values: Tensor


class PartGradients:
    """Gradients by part of the parameters, while one pass runs.

    Args:
        parameters: whose gradients are wanted.
        sizes: samples in each part; consecutive in the batch.
    """

    def __init__(self, parameters: Sequence[Tensor], sizes: Sequence[int]) -> None:
        self._parameters = list(parameters)
        self._sizes = list(sizes)
        self._samples = sum(sizes)
        self._weights = {id(p): _Weight(i, lambda g: g, p) for i, p in enumerate(self._parameters)}
        self._parts: list[Tensor | None] = [None] * len(self._parameters)
        self._first: list[Tensor | None] = [None] * len(self._parameters)
        self._together: list[list[int]] = []

    def call(
        self,
        rule: Callable[..., "Use | None"],
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call a function and note how it uses a parameter, by the rule for it in `part_rules`."""
        output = func(*args, **kwargs)
        if not isinstance(output, Tensor) or not output.requires_grad:
            return output
        with torch._C.DisableTorchFunction():
            try:
                use = rule(self, output, *args, **kwargs)
            except (TypeError, ValueError):  # called in a way that is not known here
                return output
            if use is not None:
                self._watch(output, use)
        return output

    @property
    def complete(self) -> bool:
        """Whether a use of every parameter was seen."""
        return {i for same in self._together for i in same} == set(range(len(self._parameters)))

    def checked(
        self, gradient: Sequence[Tensor], of_first: Sequence[Tensor]
    ) -> list[Tensor] | None:
        """Gradients by part, (P, …) for each parameter, or None where they contradict what is known.

        Args:
            gradient: of the whole batch.
            of_first: of the first sample, from a pass of its own.
        """
        # Far above the rounding of sums in another order, far below any wrong term.
        tolerance = torch.finfo(self._parameters[0].dtype).eps ** 0.5
        parts: list[Tensor] = []
        rows = []
        for part, first, whole, alone in zip(
            self._parts, self._first, gradient, of_first, strict=True
        ):
            if part is None or first is None:
                return None
            parts.append(part)
            rows += [part, part.sum(0) - whole, alone, first - alone]
        norms = torch.stack(torch._foreach_norm(rows)).double().view(-1, 4).cpu()
        if not bool(torch.isfinite(norms).all()):
            return None
        # A gradient that is zero but for rounding (the bias of keys in attention) is measured by its neighbour's.
        scale = norms.clone()
        for same in self._together:
            most = norms[same].amax(0)
            for i in same:
                scale[i] = torch.maximum(scale[i], most)
        known = (norms[:, 1] <= tolerance * scale[:, 0]) & (norms[:, 3] <= tolerance * scale[:, 2])
        return parts if bool(known.all()) else None

    def weight(self, value: Any) -> _Weight | None:
        """What a tensor is of a parameter, if it is nothing else."""
        return self._weights.get(id(value))

    def derived(self, output: Tensor, of: _Weight, lift: Callable[[Tensor], Tensor]) -> None:
        """Note that ``output`` is a function of a weight."""
        self._weights[id(output)] = _Weight(of.parameter, lambda g: of.lift(lift(g)), output)

    def batched(self, value: Any) -> bool:
        """Whether the first axis can be that of the samples, or of their rows one after the other."""
        return (
            isinstance(value, Tensor)
            and value.dim() > 0
            and value.shape[0] > 0
            and value.shape[0] % self._samples == 0
        )

    def by_sample(self, ids: Tensor) -> bool:
        """Whether integers are those of the samples; else they are positions, the same for each."""
        if ids.dim() == 0 or len(ids) != self._samples:
            return False
        return ids.dim() > 1 or not bool((ids == torch.arange(len(ids), device=ids.device)).all())

    def of(self, values: Any, weight: Any, bias: Any, rule: Rule) -> Use | None:
        """The use of a weight and a bias, whose gradients are what ``rule`` gives for them in turn."""
        known = [self.weight(w) if w is not None else None for w in (weight, bias)]
        chosen = [k for k, w in enumerate(known) if w is not None]
        if not chosen or not self.batched(values):
            return None
        weights = [w for w in known if w is not None]

        def lifted(x: Tensor, g: Tensor) -> list[Tensor]:
            found = rule(x, g)
            return [w.lift(found[k]) for k, w in zip(chosen, weights, strict=True)]

        return Use([w.parameter for w in weights], lifted, values.detach())

    def _watch(self, output: Tensor, use: Use) -> None:
        self._together.append(use.parameters)
        # Let go of as soon as it has been used, as autograd lets go of its own.
        held = [use.values]

        def backward(gradient: Tensor) -> None:
            if not held or not self.batched(gradient):
                return
            values = held.pop()
            if len(values) != len(gradient):
                return
            rows = len(values) // self._samples
            first = use.rule(values[None, :rows], gradient[None, :rows])
            for i, by_part, one in zip(
                use.parameters, self._by_part(use.rule, values, gradient, rows), first, strict=True
            ):
                known, alone = self._parts[i], self._first[i]
                self._parts[i] = by_part if known is None else known.add_(by_part)
                self._first[i] = one[0] if alone is None else alone.add_(one[0])

        output.register_hook(backward)

    def _by_part(self, rule: Rule, values: Tensor, gradient: Tensor, rows: int) -> list[Tensor]:
        if len(set(self._sizes)) == 1:
            shape = (len(self._sizes), -1)
            return rule(values.unflatten(0, shape), gradient.unflatten(0, shape))
        sizes = [rows * s for s in self._sizes]
        pieces = [
            rule(x[None], g[None])
            for x, g in zip(values.split(sizes), gradient.split(sizes), strict=True)
        ]
        return [torch.cat(same) for same in zip(*pieces, strict=True)]
