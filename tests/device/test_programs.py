"""Programs that hold their network are moved whole, with the tensors that they make inside."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from curvcli.loading.checkpoints.exported import Program, load_program
from curvcli.loading.checkpoints.torchscript import ScriptProgram, load_torchscript
from tests.device.targets import Placed


@pytest.fixture
def tokens() -> Tensor:
    return torch.arange(12).reshape(2, 6) % 16


def exported(path: Path, tokens: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of itself
        torch.export.save(torch.export.export(Placed().eval(), (tokens,)), path)


def traced(path: Path, tokens: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of itself
        torch.jit.save(torch.jit.trace(Placed().eval(), (tokens,)), str(path))


def test_an_exported_program_makes_its_tensors_where_it_is(
    tokens: Tensor, tmp_path: Path, device: torch.device
) -> None:
    """The places of the tokens are made inside; on the CPU, when the program was written."""
    exported(tmp_path / "program.pt2", tokens)
    program = load_program(tmp_path / "program.pt2", False)
    before = program(tokens).detach()
    assert isinstance(program, Program)
    placed = program.placed(device)
    assert {t.device.type for t in placed.state_dict().values()} == {device.type}
    torch.testing.assert_close(placed(tokens.to(device)).cpu(), before)


def test_a_traced_program_makes_its_tensors_where_it_is(
    tokens: Tensor, tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing writes the device into the graph."""
    traced(tmp_path / "program.pt", tokens)
    program = load_torchscript(tmp_path / "program.pt", False)
    assert isinstance(program, ScriptProgram)
    before = program(tokens).detach()
    if device.type != "cuda":
        # The second device cannot take the weights of a script; where its tensors are made can be read.
        monkeypatch.setattr(ScriptProgram, "to", lambda self, device: self)
        graph = str(program.placed(device).script.inlined_graph)
        assert f'value="{device}"' in graph
        assert 'value="cpu"' not in graph
        return
    torch.testing.assert_close(program.placed(device)(tokens.to(device)).cpu(), before)


def test_a_copy_of_a_moved_program_stays_where_it_is(
    tokens: Tensor, tmp_path: Path, device: torch.device
) -> None:
    """What computes again in double precision works on a copy."""
    exported(tmp_path / "program.pt2", tokens)
    program = load_program(tmp_path / "program.pt2", False)
    assert isinstance(program, Program)
    copied = copy.deepcopy(program.placed(device)).double()
    assert copied(tokens.to(device)).device.type == device.type
