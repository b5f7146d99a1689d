"""What exact Jacobians of a whole batch cost, against gradients and against a loop over samples.

    python benchmarks/jacobian.py [REPEATS]

Prints, for the classifiers among the sample models (10 outputs), the time of the exact Frobenius norms of all
samples in units of one gradient of the same batch, and its ratio to a loop of
`torch.autograd.functional.jacobian` over the samples. Runs alternate, so that both see the same load of the
machine; medians and the lowest and highest ratio are given.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from curvcli.analyses.shared.settings import resolve_target
from curvcli.analyses.shared.subject import Subject
from curvcli.operators.jacobian.jacobian import Jacobian, explore
from curvcli.operators.jacobian.taps import Passage

SAMPLES = Path(__file__).parent.parent / "sample_models"


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(name: str, repeats: int) -> str:
    """One line of the table."""
    spec, _ = resolve_target(str(SAMPLES / f"{name}.toml"), {}, ("jacobian",))
    subject = Subject(spec)
    objective = subject.objective
    model, batch = objective.model, subject.target.model_batches[0]
    x = batch.data[0][0]
    passage = Passage(model)
    structure, _ = explore(passage, batch)

    def exact() -> torch.Tensor:
        matrices = Jacobian.of(passage, batch, structure).dense()
        return torch.linalg.matrix_norm(matrices)

    def loop() -> torch.Tensor:
        found = [torch.autograd.functional.jacobian(model, x[i : i + 1]) for i in range(len(x))]
        return torch.stack([torch.linalg.vector_norm(j) for j in found])

    assert torch.allclose(exact(), loop(), rtol=1e-4)
    objective.gradient()
    in_gradients, times_faster = [], []
    for _ in range(repeats):
        gradient = statistics.median(seconds(objective.gradient) for _ in range(5))
        ours = statistics.median(seconds(exact) for _ in range(5))
        in_gradients.append(ours / gradient)
        times_faster.append(seconds(loop) / ours)
    return (
        f"{name:<18} {len(x):>7}   {statistics.median(in_gradients):6.1f} "
        f"({min(in_gradients):.1f} to {max(in_gradients):.1f})   {statistics.median(times_faster):6.1f} "
        f"({min(times_faster):.1f} to {max(times_faster):.1f})"
    )


def main() -> None:
    """Measure the sample models."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print(f"{torch.get_num_threads()} threads, {repeats} repeats")
    print("model              samples   gradients             times faster than a loop")
    for name in ("digits_mlp", "digits_cnn", "digits_lstm", "dead_relu", "vanishing_sigmoid"):
        print(measure(name, repeats), flush=True)


if __name__ == "__main__":
    main()
