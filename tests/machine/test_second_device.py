"""Everything that holds on CUDA holds on a second device that needs no GPU; in a process of its own, which keeps it."""

import os
import subprocess
import sys

import pytest
import torch

from tests.oracles.program import ROOT

_NEEDED = (2, 10)


@pytest.mark.timeout(1500)
@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < _NEEDED,
    reason="torch takes devices written in Python from version 2.10",
)
def test_the_tests_of_devices_pass_on_a_second_one(request: pytest.FixtureRequest) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short",
            "-m", request.config.option.markexpr, "tests/device",
        ],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "CURVCLI_TEST_DEVICE": "second"},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
