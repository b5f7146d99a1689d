"""A device without float64, as MPS: what needs it is computed on the CPU, and a note says so."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.device import second
from tests.device.conftest import DEVICE
from tests.device.targets import write_targets
from tests.device.test_commands import answer_of, cases

pytestmark = pytest.mark.skipif(DEVICE != "second", reason="a real device has what it has")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("targets")
    write_targets(made)
    return made


@pytest.fixture(autouse=True)
def _single_precision() -> Iterator[None]:
    with second.refusing(torch.float64):
        yield


@pytest.mark.parametrize(("command", "name"), cases(["digits_mlp", "digits_lstm"]))
def test_every_command_answers(command: str, name: str, folder: Path, device: torch.device) -> None:
    answer_of(command, name, folder, str(device), "float32")
