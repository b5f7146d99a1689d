"""A fault at any operation, write or read ends in the right answer or a sentence; nothing that is kept is damaged."""

import pytest

from tests.oracles.faults import COMMANDS, KINDS, NUMBERS, sweep

FEW = range(1, 7)


@pytest.mark.parametrize("kind", ["write", "read"])
@pytest.mark.parametrize("command", ["density", "check", "init"])
def test_an_early_fault(command: str, kind: str) -> None:
    """The first writes and reads: exit code 2 for one at least, and never 70."""
    counts = sweep(command, (kind,), FEW)
    assert counts[f"{kind} 2"] > 0


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_fault(command: str, kind: str) -> None:
    """Each of the first 300 operations, writes and reads of every command, and some of the later ones."""
    counts = sweep(command, (kind,), NUMBERS)
    assert sum(counts.values()) > 0
