"""`hessian --state` writes the run while it goes on, not only at its end."""

from pathlib import Path

import pytest

from curvcli.errors import OutputError
from curvcli.linalg.lanczos.factorization import LanczosState
from curvcli.linalg.lanczos.state import save_state
from tests.oracles.program import ROOT, answer

MLP = str(ROOT / "sample_models" / "digits_mlp.toml")


def test_the_state_is_written_between_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where writing takes no time, after every product; each state is further than the one before."""
    seen: list[int] = []
    module = "curvcli.analyses.hessian.run"

    def watched(path: Path, state: LanczosState, key: str) -> None:
        seen.append(state.matvecs)
        save_state(path, state, key)

    monkeypatch.setattr(f"{module}.save_state", watched)
    monkeypatch.setattr(f"{module}.SAVE_SECONDS", 0.0)
    monkeypatch.setattr(f"{module}.SAVE_SHARE", 0.0)
    command = ("hessian", MLP, "--top", "2", "--bottom", "1", "--state", str(tmp_path / "s"))
    code, envelope = answer(*command)
    assert code == 0
    assert len(seen) > 5
    assert seen == sorted(seen)
    again = answer(*command)[1]
    assert again["result"]["top"][0]["value"] == pytest.approx(
        envelope["result"]["top"][0]["value"]
    )
    assert any("went on from" in note for note in again["notes"])


def test_a_state_that_cannot_be_written_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, state: LanczosState, key: str) -> None:
        raise OutputError("'s' cannot be written: No space left on device", "check --state")

    monkeypatch.setattr("curvcli.analyses.hessian.run.save_state", full)
    command = ("hessian", MLP, "--top", "1", "--bottom", "0", "--state")
    code, envelope = answer(*command, str(tmp_path / "s"))
    assert code == 0
    assert envelope["complete"]
    assert any("No space left" in note for note in envelope["notes"])


def test_a_folder_that_is_not_there_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    code, envelope = answer("hessian", MLP, "--state", str(tmp_path / "no" / "s"))
    assert code == 2
    assert "there is no folder" in envelope["error"]["message"]
    assert envelope["cost"]["matvecs"] == 0
