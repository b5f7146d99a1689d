"""Krylov vectors that the device has no room for are kept on the host; the answer is the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from curvcli.linalg.lanczos.factorization import start
from tests.device.targets import write_targets
from tests.device.test_commands import COMMANDS, answer_of, differences


class _Diagonal:
    """A matrix on the device whose Krylov vectors are kept at a place."""

    def __init__(self, device: torch.device, offload: str | None) -> None:
        self.n, self.dtype, self.device, self.offload = 40, torch.float64, device, offload
        self._values_N = torch.arange(40, dtype=torch.float64).to(device)

    def matvec(self, v_N: torch.Tensor) -> torch.Tensor:
        return self._values_N * v_N


@pytest.mark.parametrize("place", ["host", "folder"])
def test_rows_are_on_the_host_and_vectors_on_the_device(
    place: str, device: torch.device, tmp_path: Path
) -> None:
    """What the operator gets, and what combinations give, is where it multiplies."""
    basis = start(_Diagonal(device, str(tmp_path) if place == "folder" else place), 5, 0).basis
    assert basis.rows.device.type == "cpu"
    assert basis[0].device.type == device.type
    assert basis.whole().device.type == device.type
    w_N = torch.ones(40, dtype=torch.float64).to(device)
    basis.project_out(w_N)
    assert w_N.device.type == device.type
    assert abs(float(torch.dot(w_N, basis[0]))) < 1e-14  # some eps of a length of 6


@pytest.mark.parametrize(("command", "place"), [("hessian", "folder"), ("density", "host")])
def test_answers_are_those_without(
    command: str,
    place: str,
    device: torch.device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the rounding of sums in another order."""
    write_targets(tmp_path)
    plain = _answer(command, tmp_path, device)
    flags = ("--offload", str(tmp_path) if place == "folder" else place)
    monkeypatch.setitem(COMMANDS, command, (*COMMANDS[command], *flags))
    kept = _answer(command, tmp_path, device)
    assert differences(plain["result"], kept["result"]) == []


def _answer(command: str, folder: Path, device: torch.device) -> Any:
    return answer_of(command, "digits_mlp", folder, device.type, "float64")
