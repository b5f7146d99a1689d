"""The Jacobians of all samples of a batch at once, multiplied with from either side.

A product with Jᵀ is one backward pass (all samples at once, because a sample's output depends on its own
input only). A product with J differentiates that pass again: g(u) = Jᵀu is linear in u, so J v = ∂⟨g(u), v⟩/∂u;
its graph is kept. Where an operation has no second derivative, J v is a central difference of the outputs.

Shapes: ``S`` matrices, each ``(M, N)``: outputs × inputs of one sample. Where samples depend on each other
(batch statistics) there is one matrix: all outputs × all inputs of the batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from curvcli.errors import ModelError
from curvcli.objective.batch import Batch
from curvcli.operators.autodiff.kernels import Kernels, lacks_derivative, missing_derivatives
from curvcli.operators.autodiff.pullback import pullback
from curvcli.operators.jacobian.taps import Passage

# Samples of the piece on which coupling is looked for.
PROBE = 16
# Samples of the pieces on which kernels are tried and memory is measured.
SMALL_PIECE = 2


class Structure(NamedTuple):
    """What holds for every piece of the data."""

    coupled: bool
    """Whether an output depends on the inputs of other samples."""
    differences: str | None
    """Why products with J are finite differences, if they are."""


INDEPENDENT = Structure(False, None)


class Jacobian:
    """∂(target)/∂(sources) of the samples in a batch, as linear maps.

    Args:
        sources: tensors that the target was computed from.
        target: what was computed; source and target are nodes of one autograd graph, which is kept.
        samples: in the batch.
        structure: of the network, from `explore`.
        kernels: that the graph was made with.
        rerun: the target's value for other values of the sources; for finite differences.

    That of a linear map is its matrix, for every sample:

    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> op = Jacobian.of(Passage(model), Batch(((torch.zeros(1, 2),), {}, None), 1))
    >>> op.dense().tolist()
    [[[1.0000, 2.0000], [3.0000, 4.0000]]]
    >>> op.jvp(torch.ones(1, 2)).tolist()
    [[3.0000, 7.0000]]
    """

    def __init__(
        self,
        sources: list[Tensor],
        target: Tensor,
        samples: int,
        structure: Structure,
        kernels: Kernels,
        rerun: Callable[[list[Tensor]], Tensor] | None = None,
    ) -> None:
        self.sources, self.target, self.samples = sources, target, samples
        self.structure, self._kernels, self._rerun = structure, kernels, rerun
        self.count = 1 if structure.coupled else samples
        self._row_axes = _Axes(target, samples)
        self._column_axes = [_Axes(x, samples) for x in sources]
        self.rows = target.numel() // self.count
        self.columns = sum(x.numel() for x in sources) // self.count
        self.dtype, self.device = target.dtype, target.device
        self.finite_S = torch.ones(self.count, dtype=torch.bool, device=self.device)
        self.products = 0
        """Products with J or Jᵀ so far."""
        self._second: tuple[Tensor, list[Tensor]] | None = None

    @classmethod
    def of(cls, passage: Passage, batch: Batch, structure: Structure = INDEPENDENT) -> "Jacobian":
        """From source to target of a network, by one forward pass.

        Raises:
            ModelError: the target does not depend on the source.
        """
        taps = passage.run(batch)
        if not taps.target.requires_grad:
            raise ModelError(
                f"the {passage.target} does not depend on the {passage.source}",
                "choose --of behind --wrt; look for .detach() or torch.no_grad() between them",
            )

        def rerun(values: list[Tensor]) -> Tensor:
            return passage.run(batch, values).target.detach()

        return cls(taps.sources, taps.target, batch.size, structure, passage.kernels, rerun)

    def vjp(self, u_SM: Tensor) -> Tensor:
        """J_iᵀ u_i for all samples, shape ``(S, n)``; zero for samples with a non-finite Jacobian."""
        return self._finite(self._vjp(u_SM))

    def _vjp(self, u_SM: Tensor) -> Tensor:
        """The same, whatever is not finite."""
        self.products += 1
        with self._kernels.active():
            parts = pullback([self.target], self.sources, [self._row_axes.back(u_SM)])
        return self._columns_of(parts)

    def jvp(self, v_SN: Tensor) -> Tensor:
        """J_i v_i for all samples, shape ``(S, m)``; zero for samples with a non-finite Jacobian."""
        self.products += 1
        if self.structure.differences is not None:
            return self._finite(self._difference(v_SN))
        u, gradients = self._second_graph()
        views = self.split(v_SN)
        used = [(g, v) for g, v in zip(gradients, views, strict=True) if g.requires_grad]
        if not used:
            return v_SN.new_zeros(self.count, self.rows)
        with self._kernels.active():
            (out,) = pullback([g for g, _ in used], [u], [v for _, v in used])
        return self._finite(self._row_axes.major(out).reshape(self.count, self.rows))

    def dense(self) -> Tensor:
        """The matrices, shape ``(S, m, n)``: one product for each row or column, whichever are fewer.

        Zero for samples with a non-finite Jacobian.
        """
        by_rows = self.rows <= self.columns
        length = self.rows if by_rows else self.columns
        multiply = self._vjp if by_rows else self.jvp
        shape = (self.count, self.rows, self.columns)
        out_SMN = torch.empty(shape, dtype=self.dtype, device=self.device)
        unit_SL = torch.zeros(self.count, length, dtype=self.dtype, device=self.device)
        vectors_LSK = out_SMN.movedim(1 if by_rows else 2, 0)
        for k in range(length):
            unit_SL[:, k] = 1
            vectors_LSK[k] = multiply(unit_SL)
            unit_SL[:, k] = 0
        # The sum shows what is not finite; looking at every entry can take as long as a product.
        if not bool(torch.isfinite(out_SMN.sum())):
            self.finite_S &= torch.isfinite(out_SMN.flatten(1)).all(1)
            out_SMN[~self.finite_S] = 0
        return out_SMN

    def missing(self) -> str | None:
        """Try both products: what prevents one of them, if anything does."""
        try:
            _, gradients = self._second_graph()
            missing = missing_derivatives([g for g in gradients if g.requires_grad])
            if missing is None:
                ones = torch.ones(self.count, self.rows + self.columns)
                ones = ones.to(self.device, self.dtype)
                self.vjp(ones[:, : self.rows])
                self.jvp(ones[:, : self.columns])
        except RuntimeError as error:
            if not lacks_derivative(error):
                raise
            return str(error)
        return missing

    def forget(self) -> None:
        """Free the graph that products with J keep; the next one makes it again."""
        self._second = None

    def _second_graph(self) -> tuple[Tensor, list[Tensor]]:
        """u and g(u) = Jᵀu with its graph."""
        if self._second is None:
            u = torch.zeros_like(self.target, requires_grad=True)
            with torch.enable_grad(), self._kernels.active():
                gradients = pullback([self.target], self.sources, [u], create_graph=True)
            self._second = u, list(gradients)
        return self._second

    def _difference(self, v_SN: Tensor) -> Tensor:
        """(f(x + hv) − f(x − hv)) / 2h, with h = eps^⅓ (rms x + 1) / ‖v‖ for each sample."""
        if self._rerun is None:
            raise ModelError(
                f"an inner Jacobian needs a second derivative that is missing: {self.structure.differences}",
                "raise --exact, so that the matrices are formed by products with the transpose alone",
            )
        x_SN = self._columns_of(self.sources).detach()
        eps = torch.finfo(self.dtype).eps ** (1 / 3)
        norm_S1 = torch.linalg.vector_norm(v_SN, dim=1, keepdim=True)
        h_S1 = eps * (x_SN.square().mean(1, keepdim=True).sqrt() + 1)
        step_SN = torch.where(norm_S1 > 0, v_SN / norm_S1, 0) * h_S1
        sides = []
        for sign in (1, -1):
            y = self._rerun(self.split(x_SN + sign * step_SN))
            sides.append(self._row_axes.major(y).reshape(self.count, self.rows))
        out_SM: Tensor = (sides[0] - sides[1]) / (2 * h_S1) * norm_S1
        return out_SM

    def _columns_of(self, parts: "list[Tensor] | tuple[Tensor, ...]") -> Tensor:
        """Parts shaped like the sources as one matrix ``(S, n)``."""
        major = [axes.major(p) for axes, p in zip(self._column_axes, parts, strict=True)]
        flat = [p.reshape(self.count, -1) for p in major]
        return flat[0] if len(flat) == 1 else torch.cat(flat, 1)

    def split(self, v_SN: Tensor) -> list[Tensor]:
        """A matrix ``(S, n)`` as parts shaped like the sources."""
        sizes = [x.numel() // self.count for x in self.sources]
        return [
            axes.back(part)
            for axes, part in zip(self._column_axes, v_SN.split(sizes, 1), strict=True)
        ]

    def _finite(self, out: Tensor) -> Tensor:
        finite_S = torch.isfinite(out).all(1)
        self.finite_S &= finite_S
        return torch.where(finite_S[:, None], out, 0)


class _Axes:
    """A tensor with its sample axis in front, and back.

    The sample axis is the first of the samples' length. Where there is none, samples are taken to be
    folded into the first axis; where they are not, that shows as coupling.
    """

    def __init__(self, tensor: Tensor, samples: int) -> None:
        lengths = list(tensor.shape)
        self._axis = lengths.index(samples) if samples in lengths else 0
        self._shape = tensor.movedim(self._axis, 0).shape if lengths else tensor.shape

    def major(self, tensor: Tensor) -> Tensor:
        """With the sample axis first."""
        return tensor.movedim(self._axis, 0) if tensor.dim() else tensor

    def back(self, flat: Tensor) -> Tensor:
        """From ``(S, length)`` to the original shape."""
        shaped = flat.reshape(self._shape)
        return shaped.movedim(0, self._axis) if shaped.dim() else shaped


def explore(passage: Passage, batch: Batch) -> tuple[Structure, list[str]]:
    """Find out, on few samples, how the Jacobian can be computed; kernels are switched on the way.

    Returns:
        What holds for the whole data, and notes on what was switched or found.

    Raises:
        ModelError: the network is random, or target and source are not connected.
    """
    notes: list[str] = []
    piece = next(iter(batch.pieces(SMALL_PIECE)))
    differences = None
    while True:
        missing = _try(passage, piece)
        if missing is None:
            break
        note = passage.kernels.switch_for(missing)
        if note is None:
            differences = " ".join(missing.split())[:120]
            notes.append(
                "a second derivative is missing, so products with J are central differences of the outputs "
                f"(less accurate); products with its transpose are exact: {differences}"
            )
            break
        notes.append(note)
    probe = next(iter(batch.pieces(PROBE)))
    taps = passage.run(probe)
    op = Jacobian.of(passage, probe, Structure(True, differences))
    _check_repeatable(op, taps.target)
    coupled = _coupled(op)
    if coupled:
        notes.append(
            "the samples depend on each other (batch statistics, or an axis other than the first runs over them): "
            "the Jacobian is that of the whole batch, all outputs by all inputs"
        )
    for name, calls in taps.calls.items():
        if calls > 1:
            notes.append(
                f"{name} is called {calls} times: its first input and its last output are taken"
            )
    return Structure(coupled, differences), notes


def _try(passage: Passage, piece: Batch) -> str | None:
    """What prevents a product with J or Jᵀ, if anything does."""
    try:
        return Jacobian.of(passage, piece, Structure(True, None)).missing()
    except RuntimeError as error:
        if not lacks_derivative(error):
            raise
        return str(error)


def _check_repeatable(op: Jacobian, again: Tensor) -> None:
    difference = float((again - op.target).detach().abs().max())
    scale = float(op.target.detach().abs().max())
    if difference > 1e3 * torch.finfo(op.dtype).eps * scale:
        raise ModelError(
            f"the network is random: two runs on the same data differ by {difference:.3g} in an output",
            "make the model deterministic in eval mode (dropout and sampling off)",
        )


def _coupled(op: Jacobian) -> bool:
    """Whether any sample's output depends on another sample's input.

    For each bit of the sample number, the outputs of the samples with it set are differentiated by the
    inputs of those without it, and the other way round: any two samples differ in some bit.
    """
    samples = op.samples
    if samples == 1:
        return False
    if op.target.numel() % samples or any(x.numel() % samples for x in op.sources):
        return True
    numbers_S = torch.arange(samples)
    generator = torch.Generator().manual_seed(0)
    drawn_SM = torch.randn(samples, op.target.numel() // samples, generator=generator)
    u_SM = drawn_SM.to(op.device, op.dtype)
    for bit in range((samples - 1).bit_length()):
        for side in (0, 1):
            chosen_S = (((numbers_S >> bit) & 1) == side).to(op.device)
            masked = torch.where(chosen_S[:, None], u_SM, 0).reshape(1, -1)
            back = op._row_axes.back(masked)
            parts = pullback([op.target], op.sources, [back])
            for axes, part in zip(op._column_axes, parts, strict=True):
                # Multiplying by zero keeps NaN where a Jacobian overflows: that is no coupling.
                others = axes.major(part).reshape(samples, -1)[~chosen_S]
                if bool((others.nan_to_num(0.0, 0.0, 0.0) != 0).any()):
                    return True
    return False
