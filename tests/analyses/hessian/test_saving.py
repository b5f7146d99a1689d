"""`hessian --state` writes the run while it goes on, not only at its end."""

from pathlib import Path

import pytest

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
