"""A start vector that knows where to look, and still keeps the bound on what was not seen."""

from typing import NamedTuple

from torch import Tensor

from curvcli.linalg.ranks import ALONE, Ranks

# Length of the random part beside a guess of length 1. The reach pays for it with log(1/share) only, and the
# smaller it is, the less of the start vector lies in directions that are not looked for.
RANDOM_PART = 0.1


class Start(NamedTuple):
    """A unit vector to start from."""

    vector_N: Tensor
    share: float
    """s / ‖w + s z‖ of `mixed`; 1 for a vector that is random altogether."""


def mixed(
    random_N: Tensor, guess_N: Tensor | None, part: float = RANDOM_PART, ranks: Ranks = ALONE
) -> Start:
    """q = (w + s z) / ‖w + s z‖ of a unit guess w and a random z, and what that does to the reach.

    The reach (`linalg.reach`) needs |⟨x, q⟩| ≥ δ for an eigenvector x with probability 1 - p. Let z be uniform on
    the unit sphere of ℝⁿ, n ≥ 3, and independent of w, and let δ be `smallest_component` for z alone. The
    density of c = ⟨x, z⟩ is symmetric and does not grow with |c| (it is ∝ (1 - c²)^((n-3)/2)), so that no interval of
    length 2δ holds more of it than the one around 0:

        P(|⟨x, w⟩ + s c| < s δ) = P(|c + ⟨x, w⟩ / s| < δ) ≤ P(|c| < δ) ≤ p.

    Hence |⟨x, q⟩| ≥ s δ / ‖w + s z‖ with probability 1 - p, whatever w is, also one that is orthogonal to x or wrong
    altogether. The length ‖w + s z‖ is known; only the event above is random. The whole price of the guess
    is log(1/share) in the equation that the reach solves, beside log(1/δ).

    z must not be the vector that an earlier run started from if w is a result of that run: w would depend on it.

    Args:
        random_N: z, a unit vector.
        guess_N: w, of any length but zero; None or a zero vector: q = z.
        part: s.
        ranks: the processes that hold the vectors.
    """
    if guess_N is None or len(random_N) < 3:
        return Start(random_N, 1.0)
    length = ranks.norm(guess_N)
    if not float(length) > 0:
        return Start(random_N, 1.0)
    sum_N = guess_N / length + part * random_N
    norm = float(ranks.norm(sum_N))
    return Start(sum_N / norm, part / norm)
