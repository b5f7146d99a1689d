"""The Hessian in the coordinates of an adaptive optimizer: D^(-1/2) H D^(-1/2).

D is the diagonal by which a step is divided, √v̂ + ε for Adam. The eigenvalues are those of D⁻¹H, which decide whether
the optimizer's steps are stable (Cohen et al., "Adaptive gradient methods at the edge of stability", 2022).

Shapes: ``N`` parameters, ``K`` vectors at once.
"""

from functools import cached_property
from typing import Any, Self

from torch import Tensor

from curvcli.linalg.vectors import double
from curvcli.objective.batch import Batch
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.hessian import FirstOrderGraph, Hessian


class PreconditionedHessian(Hessian):
    """D^(-1/2) ∇²L(θ) D^(-1/2) as a linear map.

    Args:
        objective: L.
        diagonal_N: the diagonal of D, positive; ∞ takes a parameter out: its row and column are zero.
        options: see `Curvature`.

    A preconditioner that is the Hessian itself, here 2/N XᵀX = diag(1, 4), leaves the identity:

    >>> import torch
    >>> from curvcli.loading.loss import loss_terms
    >>> from curvcli.objective.checks import make_objective
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> objective = make_objective(model, [Batch(((x,), {}, y), 2)], loss_terms("mse", {}))
    >>> op = PreconditionedHessian(objective, diagonal_N=torch.tensor([1.0, 4.0]))
    >>> op.matvec(torch.ones(2)).tolist()
    [1.0000, 1.0000]
    """

    def __init__(self, objective: Objective, *, diagonal_N: Tensor, **options: Any) -> None:
        self._scale_N = double(diagonal_N).rsqrt().to(objective.device, objective.dtype)
        super().__init__(objective, **options)

    @cached_property
    def gradient(self) -> Tensor:
        """D^(-1/2) ∇L(θ), the gradient in these coordinates."""
        return self._scale_N * super().gradient

    def difference_product(self, v_N: Tensor, length: float | None = None) -> Tensor:
        """A v by central differences of the gradient over ± ``length`` in the direction of D^(-1/2) v."""
        return self._scale_N * self._central_difference(self._scale_N * v_N, length)

    def one_sided(self, v_N: Tensor, length: float) -> tuple[Tensor, Tensor]:
        """See `Hessian.one_sided`; over ``length`` in the direction of D^(-1/2) v."""
        ahead_N, behind_N = super().one_sided(self._scale_N * v_N, length)
        return self._scale_N * ahead_N, self._scale_N * behind_N

    def decay_product(self, v_N: Tensor) -> Tensor:
        """What the weight decay adds to a product, a new tensor."""
        return super().decay_product(v_N) * self._scale_N.square()

    def check(
        self, v_N: Tensor, exact_N: Tensor | None = None, length: float | None = None
    ) -> float | None:
        """Relative difference between H D^(-1/2) v and its central finite difference; see `Curvature.check`."""
        exact_N = self.matvec(v_N) if exact_N is None else exact_N
        plain = Hessian(self.objective, like=self)
        moved_N = self._scale_N * v_N
        unscaled_N, out_N = exact_N / self._scale_N, self._scale_N == 0
        if self.ranks.largest(int(bool(out_N.any()))):
            unscaled_N = unscaled_N.where(~out_N, plain.matvec(moved_N))
        return plain.check(moved_N, unscaled_N, length)

    def twin(self, objective: Objective) -> Self:
        """See `Curvature.twin`."""
        return type(self)(objective, diagonal_N=double(self._scale_N).pow(-2), like=self)

    def _multiply(self, graph: FirstOrderGraph, views: list[Tensor], retain: bool) -> Tensor:
        scales = self.views(self._scale_N)
        scaled = [v * s for v, s in zip(views, scales, strict=True)]
        return super()._multiply(graph, scaled, retain).mul_(self._scale_N)

    def _multiply_together(self, graph: FirstOrderGraph, vectors_KN: Tensor) -> Tensor:
        return self._multiply_each(graph, vectors_KN)

    def _difference_part(self, batch: Batch, vectors_KN: Tensor) -> Tensor:
        return super()._difference_part(batch, vectors_KN * self._scale_N) * self._scale_N
