"""``python -m tests.fuzz SECONDS``: all targets in turn, for so long, with new inputs every time."""

import sys
import time

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, inputs, run


def fuzz(name: str, seconds: float) -> int:
    """New inputs of one format for so long; how many there were."""
    count = 0
    end = time.monotonic() + seconds

    @settings(
        max_examples=100,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        nonlocal count
        count += 1
        run(name, data.draw(inputs(name)))

    while time.monotonic() < end:
        one()
    return count


def main() -> None:
    """Fuzz every format for an equal share of the time."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    for name in TARGETS:
        print(f"{name}: {fuzz(name, seconds / len(TARGETS))} inputs", flush=True)


if __name__ == "__main__":
    main()
