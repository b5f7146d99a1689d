"""Krylov methods by reverse communication: a run yields a vector and is sent its product with the matrix.

One run is answered by a matrix alone; several advance together, so that the work that their products share is done
once for all of them.
"""

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from torch import Tensor

R = TypeVar("R")

Request = Generator[Tensor, Tensor, R]
"""A run: yields vectors, is sent their products, returns its result."""


def answered(request: Request[R], matvec: Callable[[Tensor], Tensor]) -> R:
    """The result of one run, whose products are ``matvec``."""
    try:
        vector_N = next(request)
        while True:
            vector_N = request.send(matvec(vector_N))
    except StopIteration as done:
        result: R = done.value
        return result


def lockstep(
    requests: Sequence[Request[R]],
    products: Callable[[list[Tensor | None]], list[Tensor | None]],
) -> list[R]:
    """The results of several runs that advance together, one product each at a time.

    Args:
        requests: the runs.
        products: takes the next vector of every run (None for one that has ended) and returns their products in
            the same places.
    """
    results: dict[int, R] = {}

    def step(index: int, product_N: Tensor | None) -> Tensor | None:
        request = requests[index]
        try:
            return next(request) if product_N is None else request.send(product_N)
        except StopIteration as done:
            results[index] = done.value
            return None

    pending = [step(i, None) for i in range(len(requests))]
    while len(results) < len(requests):
        found = products(pending)
        pending = [
            None if v_N is None else step(i, product_N)
            for i, (v_N, product_N) in enumerate(zip(pending, found, strict=True))
        ]
    return [results[i] for i in range(len(requests))]
