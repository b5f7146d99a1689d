"""Fisher matrices: outer products of the gradients of single data.

The empirical Fisher takes them at the targets of the data, E = Σ_n g_n g_nᵀ / W; the Fisher information at targets
drawn from the model, F = Σ_n E_y[g gᵀ] / W, here with a fixed number of draws for each datum. For logits, squares
and Bernoulli outputs F equals the generalised Gauss-Newton matrix in expectation (Martens, JMLR 21, 2020; Kunstner,
Hennig & Balles, NeurIPS 2019). What a datum is says `operators.likelihoods`.

Shapes: ``K`` vectors, ``D`` draws, ``S`` samples, ``M`` outputs of each, ``R`` columns of a factor.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curvcli.linalg.vectors import double
from curvcli.objective.batch import Batch
from curvcli.objective.objective import Objective
from curvcli.objective.terms import SplitLoss
from curvcli.operators.curvature.gauss_newton import GaussNewton, OutputCurvature
from curvcli.operators.curvature.likelihoods import Datum, datum_of, likelihood_of


class _Scores(GaussNewton):
    """Σ_n J_nᵀ (mean over draws of u uᵀ) J_n / W for scores u in the outputs."""

    def scores(self, outputs: Tensor, batch: Batch) -> Tensor:
        """u of each draw, shape (D, …) with the outputs' shape."""
        raise NotImplementedError

    def datum(self, outputs: Tensor, batch: Batch) -> Datum:
        """What one datum is."""
        loss = self._loss()
        return datum_of(loss, outputs, loss.targets(batch.data))

    def output_curvature(self, outputs: Tensor, batch: Batch) -> OutputCurvature:
        """C of one piece: mean over draws of u uᵀ / W, block by block."""
        with torch.no_grad():
            detached = outputs.detach()
            u = self.scores(detached, batch)
            datum = self.datum(detached, batch)
        share = len(u) * self.objective.weight

        def product(a: Tensor) -> Tensor:
            return (u * datum.inner(u, a)).sum(0) / share

        return OutputCurvature(product, [])

    def factors(self, outputs: Tensor, batch: Batch) -> Tensor | None:
        """L with C = L Lᵀ for each sample, shape (S, M, R): one column for each datum and draw."""
        detached = outputs.detach()
        u = self.scores(detached, batch) / math.sqrt(self.objective.weight)
        u = u / math.sqrt(len(u))
        datum = self.datum(detached, batch)
        rows = batch.size if self.objective.splittable else 1
        inner = [x for x in range(outputs.dim()) if x not in datum.axes]
        # Data of one sample have no output in common: one column each.
        per_sample = math.prod(outputs.shape[x] for x in inner) // rows
        if per_sample == 1:
            return u.reshape(len(u), rows, -1).permute(1, 2, 0)
        number = torch.arange(math.prod(outputs.shape[x] for x in inner), device=u.device)
        place = number.reshape([n if i in inner else 1 for i, n in enumerate(outputs.shape)])
        place = (place % per_sample).expand(outputs.shape).reshape(rows, -1)
        flat = u.reshape(len(u), rows, -1)
        columns = flat.new_zeros(rows, flat.shape[2], len(u), per_sample)
        spots = place[:, :, None, None].expand(-1, -1, len(u), 1)
        columns.scatter_(3, spots, flat.permute(1, 2, 0)[..., None])
        return columns.reshape(rows, flat.shape[2], -1)


class EmpiricalFisher(_Scores):
    """E(θ) as a linear map; see `Curvature` for the arguments.

    Raises:
        LossError: the objective does not separate outputs and loss.

    A linear regression's gradients are g = 2 (xᵀw − y) x, here (2, 0) and (0, 8):

    >>> from curvcli.loading.loss import loss_terms
    >>> from curvcli.objective.checks import make_objective
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.fill_(1.0)
    >>> objective = make_objective(model, [Batch(((x,), {}, y), 2)], loss_terms("mse", {}))
    >>> EmpiricalFisher(objective).matvec(torch.ones(2)).tolist()
    [2.0000, 32.0000]
    """

    def scores(self, outputs: Tensor, batch: Batch) -> Tensor:
        """∂ℓ/∂z at the targets of the data, shape (1, …)."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            total, _ = self._loss().of_outputs(leaf, batch.data)
            return torch.autograd.grad(total, leaf, materialize_grads=True)[0][None]


class Quadratic(NamedTuple):
    """vᵀFv over all targets, and how far that of the drawn ones strays from it."""

    expected: float
    standard_error: float
    """Of vᵀF̂v over the draws, for a v that does not depend on them."""


class Fisher(_Scores):
    """F(θ) from drawn targets as a linear map; the draws are the same in every product.

    Args:
        objective: L.
        draws: targets drawn for each datum.
        seed: of the draws.
        options: see `Curvature`.

    Raises:
        LossError: the loss is no known negative log-likelihood.

    A logistic regression with w = 0 has the scores ± x/2 whatever is drawn, and F = XᵀX / 4N:

    >>> from curvcli.loading.loss import loss_terms
    >>> from curvcli.objective.checks import make_objective
    >>> x, y = torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.zeros(2, 1)
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.fill_(0.0)
    >>> objective = make_objective(model, [Batch(((x,), {}, y), 2)], loss_terms("bce_with_logits", {}))
    >>> Fisher(objective).matvec(torch.ones(2)).tolist()
    [0.5000, 2.0000]
    """

    def __init__(
        self, objective: Objective, *, draws: int = 1, seed: int = 0, **options: Any
    ) -> None:
        if "like" not in options:
            objective = _with_draws(objective, draws, seed)
        self._likelihood = likelihood_of(_undrawn(objective.terms))
        super().__init__(objective, **options)

    def scores(self, outputs: Tensor, batch: Batch) -> Tensor:
        """∂ℓ/∂z at the drawn targets, shape (D, …)."""
        datum = self.datum(outputs, batch)
        uniform_SDM = batch.data[1]
        draws = uniform_SDM.movedim(1, 0).reshape(uniform_SDM.shape[1], *outputs.shape)
        u = torch.stack([self._likelihood.score(outputs, one, datum) for one in draws])
        return u if datum.counts is None else u * datum.counts

    def quadratic(self, vectors_KN: Tensor) -> list[Quadratic]:
        """vᵀFv for each vector, exactly, and the standard error that drawing targets gives it."""
        means = torch.zeros(len(vectors_KN), dtype=torch.float64)
        variances = torch.zeros_like(means)
        draws = self.objective.batches[0].data[1].shape[1]
        for piece in self.objective.pieces(self.plan.micro_batch):
            graph = self._graph(piece)
            outputs = graph.outputs.detach()
            datum = self.datum(outputs, piece)
            for k, v_N in enumerate(vectors_KN):
                if not graph.pulled:
                    continue
                pushed = self.pushed(graph, v_N)
                if piece.idle:
                    continue
                found = self._likelihood.moments(outputs, pushed, datum)
                mean, variance = (
                    part if datum.counts is None else part * datum.counts for part in found
                )
                means[k] += float(double(mean).sum())
                variances[k] += float(double(variance).sum())
        means, variances = self.objective.ranks.sum(torch.stack([means, variances]))
        weight = self.objective.weight
        squares_K = self.ranks.over_entries(double(vectors_KN).square().sum(1)).cpu()
        decay = self.objective.weight_decay * squares_K
        return [
            Quadratic(mean / weight + wd, math.sqrt(variance / draws) / weight)
            for mean, variance, wd in zip(
                means.tolist(), variances.tolist(), decay.tolist(), strict=True
            )
        ]


@dataclass(frozen=True)
class _Drawn:
    """A loss on batches that carry the random numbers of their draws: (data, uniform numbers (S, D, M))."""

    loss: SplitLoss

    def __call__(self, model: nn.Module, data: Any) -> tuple[Tensor, float]:
        return self.loss(model, data[0])

    def outputs(self, model: nn.Module, data: Any) -> Tensor:
        return self.loss.outputs(model, data[0])

    def of_outputs(self, outputs: Tensor, data: Any) -> tuple[Tensor, float]:
        return self.loss.of_outputs(outputs, data[0])

    def targets(self, data: Any) -> Any:
        return self.loss.targets(data[0])

    @property
    def name(self) -> str:
        return str(getattr(self.loss, "name", type(self.loss).__name__))

    @property
    def arguments(self) -> Any:
        return getattr(self.loss, "arguments", {})


def _undrawn(terms: Any) -> Any:
    return terms.loss if isinstance(terms, _Drawn) else terms


def _with_draws(objective: Objective, draws: int, seed: int) -> Objective:
    """The same objective with uniform random numbers beside the data, cut and moved with it."""
    likelihood_of(objective.terms)  # type: ignore[arg-type]  # raises where there is none
    loss: SplitLoss = objective.terms  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for batch in objective.batches:
        with torch.no_grad(), objective.evaluation():
            numbers = loss.outputs(objective.model, batch.data).numel()
        rows = batch.size if batch.splittable else 1
        # Drawn on the CPU, so that one seed gives the same draws on every device; 0 and 1 are left out.
        uniform = torch.rand(rows, draws, numbers // rows, generator=generator, dtype=torch.float64)
        tiny = torch.finfo(objective.dtype).eps
        uniform = uniform.clamp(tiny, 1 - tiny).to(objective.device, objective.dtype)
        batches.append(Batch((batch.data, uniform), batch.size, batch.splittable))
    return replace(objective, batches=batches, terms=_Drawn(loss))
