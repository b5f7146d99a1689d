"""Tests of what holds on every device: run with `DEVICE` in the environment only, in a process of their own.

``CURVCLI_TEST_DEVICE=second`` makes a device without a GPU (`second`), which stays in the process; ``cuda`` takes the
card. `tests/machine/test_second_device.py` runs the former, ``make test-cuda`` the latter.
"""

import os

import pytest
import torch

DEVICE = os.environ.get("CURVCLI_TEST_DEVICE", "")
if not DEVICE:
    collect_ignore_glob = ["test_*.py"]
elif DEVICE == "second":
    from tests.device import second

    second.install()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """What is tested."""
    return torch.device(DEVICE)


@pytest.fixture(autouse=True)
def _known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--device second`` is understood."""
    if DEVICE == "second":
        from curvcli.loading import target
        from curvcli.machine.device import resolve_device

        usual = resolve_device
        monkeypatch.setattr(
            target,
            "resolve_device",
            lambda text: torch.device(text) if text == DEVICE else usual(text),
        )
