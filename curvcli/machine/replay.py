"""Products on kept graphs recorded once as a CUDA graph and replayed: one launch in the place of thousands.

Off unless ``CURVCLI_CUDA_GRAPHS=1`` is set: what it gains has to be shown on a card first (``make test-cuda``).
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# Calls before the recording: libraries make their workspaces in the first ones, which a recording must not do.
_WARM = 3


def recorder(device: torch.device) -> Any:
    """The module with the streams and graphs of ``device``; None where nothing is to be recorded."""
    asked = os.environ.get("CURVCLI_CUDA_GRAPHS") == "1"
    return torch.cuda if asked and device.type == "cuda" else None


class Replay:
    """Calls a function of a vector, or replays what it did.

    The recording is held against the function itself once, on the same vector. One that fails, or gives something else,
    is dropped, and the function is called from then on.

    Args:
        cuda: see `recorder`.
        tell: takes a note for the user.
    """

    def __init__(self, cuda: Any, tell: Callable[[str], None]) -> None:
        self._cuda, self._tell = cuda, tell
        self._stream = cuda.Stream() if cuda is not None else None
        self._recorded: Callable[[Tensor], Tensor] | None = None
        self._calls = 0

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """Where graphs are built: the backward of an operation runs on the stream of its forward."""
        if self._stream is None:
            yield
            return
        self.forget()
        outside = self._cuda.current_stream()
        self._stream.wait_stream(outside)
        with self._cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)

    def forget(self) -> None:
        """The graphs are gone, and with them what was recorded."""
        self._recorded, self._calls = None, 0

    def __call__(self, compute: Callable[[Tensor], Tensor], v_N: Tensor) -> Tensor:
        """``compute(v_N)``."""
        if self._recorded is not None:
            return self._recorded(v_N)
        self._calls += 1
        result_N = compute(v_N)
        if self._stream is not None and self._calls == _WARM:
            self._recorded = self._record(compute, v_N, result_N)
        return result_N

    def _record(
        self, compute: Callable[[Tensor], Tensor], v_N: Tensor, expected_N: Tensor
    ) -> Callable[[Tensor], Tensor] | None:
        into_N, graph = v_N.clone(), self._cuda.CUDAGraph()

        def replayed(vector_N: Tensor) -> Tensor:
            into_N.copy_(vector_N)
            graph.replay()
            return out_N.clone()

        try:
            with self._cuda.graph(graph, stream=self._stream):
                out_N = compute(into_N)
            found_N = replayed(v_N)
        except RuntimeError as error:  # what cannot be recorded says so in many ways
            self._tell(f"products are not recorded: {' '.join(str(error).split())[:120]}")
            return None
        # Kernels may be chosen anew, and sums ordered anew; what is wrong is wrong by more.
        allowed = torch.finfo(v_N.dtype).eps ** 0.5 * float(expected_N.norm())
        if float((found_N - expected_N).norm()) <= allowed:
            return replayed
        self._tell("products are not recorded: the recording gives something else")
        return None
