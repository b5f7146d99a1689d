"""Several processes give what one gives, all of them the same bits, for no more traffic than promised."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import SAMPLES

Found = dict[str, dict[str, Any]]


def started(count: int, command: list[str], **options: Any) -> list[subprocess.Popen[str]]:
    """A command in so many processes, as torchrun would start it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **shared, "WORLD_SIZE": str(count), "RANK": str(r), "LOCAL_RANK": str(r)},
            text=True, **options,
        )
        for r in range(count)
    ]  # fmt: skip


def found_by(count: int, folder: Path) -> list[Found]:
    """What `worker` finds in each process."""
    path = folder / str(count)
    processes = started(count, ["-m", "tests.distributed.worker", str(path)])
    assert [p.wait(timeout=240) for p in processes] == [0] * count
    return [json.loads(Path(f"{path}.{r}").read_text()) for r in range(count)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return found_by(1, tmp_path_factory.mktemp("alone"))[0]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.full)])
def test_as_one_process(count: int, alone: Found, tmp_path: Path) -> None:
    found = found_by(count, tmp_path)
    for name, one in alone.items():
        first = found[0][name]
        assert all(other[name]["figures"] == first["figures"] for other in found)
        single = name.endswith("float32")
        for what, value in one["figures"].items():
            if what == "check":  # rounding itself: small wherever it is taken
                assert max(value, first["figures"][what]) < (1e-2 if single else 1e-6)
                continue
            # Differences of gradients lose half of the digits.
            exact, halved = (1e-5, 1e-3) if single else (1e-10, 1e-8)
            tolerance = halved if what == "difference" else exact
            there, here = (flat(v) for v in (first["figures"][what], value))
            np.testing.assert_allclose(there, here, rtol=0, atol=tolerance * np.abs(here).max())
        messages, sent = first["sent"]
        products, width = first["products"], 4 if single else 8
        # The sum of the product and the vector gathered, and some numbers for each of at most twelve basis vectors.
        bound = 3 * width * (first["n"] + count) * (count - 1) / count + 2 * width * 4 * 16
        assert sent <= products * bound
        assert messages <= 8 * products


def flat(value: Any) -> np.ndarray:
    """All numbers in lists of lists."""
    if isinstance(value, list):
        return np.concatenate([flat(v) for v in value])
    return np.array([np.nan if value is None else value], dtype=float)


def test_what_hangs_on_a_clock_is_agreed(tmp_path: Path) -> None:
    """One process wants to save its state after every product, the other never: both do, as each has a part of it."""
    script = tmp_path / "save.py"
    script.write_text(
        "import os, sys\n"
        "import curvcli.analyses.hessian.run as run\n"
        "run.SAVE_SECONDS, run.SAVE_SHARE = (0.0 if os.environ['RANK'] == '0' else 1e9), 0.0\n"
        f"sys.argv = ['curvcli', 'hessian', {str(SAMPLES / 'linear_regression.toml')!r}, '--state', "
        f"{str(tmp_path / 'state')!r}]\n"
        "from curvcli.cli.main import main\n"
        "main()\n"
    )
    processes = started(2, [str(script)], stdout=subprocess.DEVNULL)
    assert [p.wait(timeout=120) for p in processes] == [0, 0]
    assert (tmp_path / "state").exists()
