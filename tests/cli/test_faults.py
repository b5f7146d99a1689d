"""A fault at any operation, write or read ends in the right answer or a sentence; nothing that is kept is damaged."""

import pytest

from tests.oracles.faults import COMMANDS, KINDS, sweep

# One in twenty seconds of the whole sweep: early operations, where readers are, and a few later ones.
FEW = range(1, 4)


@pytest.mark.parametrize("kind", ["write", "read"])
@pytest.mark.parametrize("command", ["hessian", "density", "check", "init"])
def test_an_early_fault(command: str, kind: str) -> None:
    """The first writes and reads: exit code 2 for some at least, and never 70."""
    counts = sweep(command, (kind,), FEW)
    assert sum(counts.values()) == len(FEW)
    assert counts[f"{kind} 2"] > 0


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_fault(command: str, kind: str) -> None:
    """Each of the first 300 operations, writes and reads of every command."""
    counts = sweep(command, (kind,), range(1, 301))
    assert sum(counts.values()) > 0
