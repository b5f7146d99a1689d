"""The vectorised identities of backpropagation, recomputed by hand and held against autograd.

For z = x Wᵀ + b: ∂L/∂W = δᵀx and ∂L/∂b = Σ δ with δ = ∂L/∂z; for convolutions the same sum over positions. Inputs x and
output gradients δ are recorded by hooks; the products are written out here and share nothing with autograd.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from curvcli.analyses.backprop.by_hand import Convolution, Record, recomputed
from curvcli.errors import ModelError
from curvcli.machine.containers import tensors_in
from curvcli.machine.memory import not_of_memory
from curvcli.machine.private import transformed
from curvcli.objective.checks import make_objective
from curvcli.objective.float64 import in_double
from curvcli.objective.network import is_stock
from curvcli.objective.objective import Objective
from curvcli.operators.autodiff.finite import check_finite

# Steps of the finite differences, relative to the first.
_SHRINK = (0.03, 0.001)
# Steps that must agree before autograd is accused, relative to the first.
_WITNESSES = (1.0, 0.3, 0.1)
_EPS_32, _EPS_64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Identity:
    """One parameter's gradient by autograd and by hand."""

    parameter: str
    layers: list[str]
    kind: str
    norm: float
    error: float
    """‖autograd − by hand‖ / max of both norms; 0 where both vanish."""


@dataclass(frozen=True)
class Slope:
    """One parameter's directional derivative by autograd and by finite differences."""

    parameter: str
    exact: float
    difference: float
    error: float
    """|exact − difference| relative to the larger, or to the resolution of the difference."""
    certain: bool
    """Whether the differences agree with each other."""


class _Difference(NamedTuple):
    """A central difference, its relative distance from the exact slope, and whether it has digits."""

    value: float
    error: float
    resolved: bool


class _Precision(TorchDispatchMode):
    """Notices computation in less than double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.single = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's hook; otherwise the first operation imports its compiler."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at the dtypes of what it made."""
        result = func(*args, **(kwargs or {}))
        self.single = self.single or any(
            t.is_floating_point() and t.dtype.itemsize < 8 for t in tensors_in(result)
        )
        return result


class BackpropCheck:
    """Checks of ∇L in float64, on a copy of the model and a few samples.

    Args:
        objective: L; it is not changed.
        samples: how many samples of the first batch are used.

    Raises:
        ModelError: the model cannot be copied, or does not run in float64.
        NonFiniteError: the gradient is not finite.
    """

    def __init__(self, objective: Objective, samples: int) -> None:
        piece = next(iter(objective.batches[0].pieces(samples)))
        try:
            model, batch = in_double(objective.model, piece, objective.device)
        except (RuntimeError, TypeError, AttributeError) as error:
            not_of_memory(error)
            raise ModelError(
                f"the model cannot be copied to float64: {error}",
                "backprop is checked in float64 only",
            ) from error
        self.objective = make_objective(
            model,
            [batch],
            objective.terms,
            select=objective.names,
            train_mode=objective.model.training,
        )
        self.samples = piece.size
        self.records: dict[str, Record] = {}
        with _Precision() as precision:
            self.gradients = self._record()
        batches, gradient_of = self.objective.batches, self.objective.gradient_of
        check_finite(self.objective.flatten(self.gradients), "the gradient", batches, gradient_of)
        self.differentiates = any(max(r.visits, default=0) > 1 for r in self.records.values())
        """Whether the loss takes derivatives itself, so that a weight's gradient is more than δᵀx."""
        self.single = precision.single
        """Whether parts compute in single precision whatever they are given: softmax and losses of language models."""

    def identities(self) -> list[Identity]:
        """Every parameter of linear, convolution and embedding layers, against its recomputed gradient."""
        if self.differentiates:
            return []
        by_hand: dict[int, Tensor] = {}
        owners: dict[int, list[tuple[str, str]]] = {}
        for name, module in _checked(self.objective.model):
            for parameter, value in recomputed(module, self.records[name]):
                key = id(parameter)
                by_hand[key] = by_hand[key] + value if key in by_hand else value
                owners.setdefault(key, []).append(
                    (name or type(module).__name__, type(module).__name__)
                )
        strangers = self._used_elsewhere()
        found = []
        for name, parameter, gradient in zip(
            self.objective.names, self.objective.parameters, self.gradients, strict=True
        ):
            if id(parameter) not in by_hand or id(parameter) in strangers:
                continue
            layers = owners[id(parameter)]
            other = by_hand[id(parameter)]
            norms = [float(torch.linalg.vector_norm(t)) for t in (gradient, other)]
            error = (
                float(torch.linalg.vector_norm(gradient - other)) / max(norms)
                if max(norms)
                else 0.0
            )
            found.append(Identity(name, [n for n, _ in layers], layers[0][1], norms[0], error))
        return found

    def slopes(
        self,
        seed: int,
        tolerance: float,
        progress: Callable[[int, int], None] = lambda done, all_: None,
        stop: Callable[[], object] = lambda: None,
    ) -> list[Slope]:
        """∂L along a random direction of each parameter tensor, against central differences.

        Args:
            seed: of the directions.
            tolerance: relative difference up to which they agree.
            progress: told of each parameter.
            stop: asked before each one but the first; a reason ends with those that are known.

        A detached branch or a wrong backward shows in the parameters in front of it.
        """
        objective = self.objective
        generator = torch.Generator().manual_seed(seed)
        found = []
        zero_N = torch.zeros(objective.n, dtype=torch.float64, device=objective.device)
        for index, (name, gradient) in enumerate(zip(objective.names, self.gradients, strict=True)):
            if index and stop() is not None:
                break
            progress(index, len(objective.names))
            v = torch.randn(gradient.shape, generator=generator, dtype=torch.float64).to(
                gradient.device
            )
            v /= torch.linalg.vector_norm(v)
            parts = objective.views(zero_N)
            parts[index] = v
            direction_N = objective.flatten(parts)
            exact = float((gradient * v).sum())
            scale = 1 + float(torch.linalg.vector_norm(objective.parameters[index].detach()))
            first = (1e-2 if self.single else 1e-6) * scale / max(1, v.numel()) ** 0.25
            best = self._difference(direction_N, first, exact)
            for shrink in () if self.single else _SHRINK:
                # Where the third derivative is huge only a smaller step is right; it counts where its
                # rounding leaves digits to compare. A wrong gradient is wrong at every step.
                other = self._difference(direction_N, first * shrink, exact)
                if other.resolved and other.error < best.error:
                    best = other
            certain = best.error <= tolerance or self._agree(direction_N, first, exact)
            found.append(Slope(name, exact, best.value, best.error, certain))
        return found

    def _agree(self, direction_N: Tensor, first: float, exact: float) -> bool:
        """Whether differences over three steps, and both sides, agree with each other more than with ``exact``.

        Across a kink the sides differ, and with them the steps: what differs among themselves accuses nobody.
        """
        here = self.objective.value()
        middles: list[float] = []
        for step in _WITNESSES:
            h = first * step
            sides = []
            for sign in (1.0, -1.0):
                with self.objective.moved(sign * h * direction_N):
                    sides.append(sign * (self.objective.value() - here) / h)
            rounding = 8 * (_EPS_32 if self.single else _EPS_64) * abs(here) / h
            middles.append(sum(sides) / 2)
            doubt = 0.5 * abs(middles[-1] - exact) + rounding
            # A surface that bends within all three steps (a normalisation of almost nothing) has as many differences.
            own = 0.5 * max(map(abs, middles)) + rounding
            spread = max(middles) - min(middles)
            if not (max(abs(sides[0] - sides[1]), spread) <= doubt and spread <= own):
                return False
        return True

    def _difference(self, direction_N: Tensor, h: float, exact: float) -> _Difference:
        """The central difference of L over ± h, held against ``exact``."""
        values = []
        for sign in (1.0, -1.0):
            with self.objective.moved(sign * h * direction_N):
                values.append(self.objective.value())
        difference = (values[0] - values[1]) / (2 * h)
        # Slopes below so many times the rounding of the difference cannot be told from zero.
        eps, times = (4 * _EPS_32, 100) if self.single else (100 * _EPS_64, 10_000)
        least = times * eps * max(map(abs, values)) / h
        largest = max(abs(exact), abs(difference))
        scale = max(largest, least)
        error = abs(exact - difference) / scale if scale > 0 else 0.0  # a loss that is 0 everywhere
        return _Difference(difference, error, largest > least)

    def _record(self) -> list[Tensor]:
        """One backward pass with hooks on every checked layer."""
        handles = []
        for name, module in _checked(self.objective.model):
            record = self.records.setdefault(name, Record())
            handles.append(module.register_forward_hook(_recorder(record), with_kwargs=True))
        try:
            with torch.enable_grad():
                total = self.objective.sum_of(self.objective.batches[0])
                gradients = torch.autograd.grad(
                    total, self.objective.parameters, allow_unused=True, materialize_grads=True
                )
        finally:
            for handle in handles:
                handle.remove()
        return [gradient.detach() for gradient in gradients]  # zeros filled in by 2.8 require grad

    def _used_elsewhere(self) -> set[int]:
        """Parameters that are used where nothing is recorded too, so that their sum by hand is incomplete."""
        checked = {
            id(module)
            for name, module in _checked(self.objective.model)
            if not self.records[name].transformed
        }
        return {
            id(parameter)
            for module in self.objective.model.modules()
            if id(module) not in checked
            for parameter in module.parameters(recurse=False)
        }


def _checked(model: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (nn.Linear, Convolution, nn.Embedding)
    # Attention modules use their projection's weight without calling it.
    inside = {
        id(child)
        for m in model.modules()
        if isinstance(m, nn.MultiheadAttention)
        for child in m.modules()
    }
    return [
        (n, m)
        for n, m in model.named_modules()
        if isinstance(m, kinds) and id(m) not in inside and _holds_its_weight(m)
    ]


def _holds_its_weight(module: nn.Module) -> bool:
    """Whether the layer is torch's own, and its weight a parameter that nothing computes (weight_norm, pruning)."""
    return is_stock(module) and isinstance(module._parameters.get("weight"), nn.Parameter)


def _recorder(record: Record) -> Callable[..., Tensor | None]:
    def hook(
        _module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        if transformed(unknown=False):
            record.transformed = True
            return None
        x = inputs[0] if inputs else keywords["input"]
        if not output.requires_grad:
            return None
        # The slot keeps calls and their gradients together: backward visits them in reverse.
        slot = len(record.deltas)
        record.inputs.append(x.detach().clone())
        record.deltas.append(torch.zeros_like(output))
        record.visits.append(0)

        def keep(delta: Tensor) -> None:
            record.deltas[slot] = delta.detach()
            record.visits[slot] += 1

        output.register_hook(keep)
        # In-place activations work on the clone: changing a view would take the hook out of the graph.
        return output.clone()

    return hook
