"""The loops in the guide run as they stand there."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles.program import ROOT
from tests.training.loops import X, Y, network

GUIDE = (ROOT / "docs" / "training-loop.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.filterwarnings("default")
def test_the_loop_and_the_accumulation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first block to the hook, with a shorter interval."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    monkeypatch.chdir(tmp_path)
    model = network()
    names: dict[str, Any] = {
        "torch": torch, "model": model, "x": X, "y": Y, "loader": [(X[:32], Y[:32])] * 4,
        "micro_batches": [(X[:16], Y[:16]), (X[16:32], Y[16:32])],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
    }  # fmt: skip
    loop, accumulation, *_, hook = (b.replace("every=500", "every=1") for b in BLOCKS)
    exec(loop.replace('"2%"', "None"), names)
    assert len(names["monitor"].history) == 4
    assert list((tmp_path / "runs" / "curvature").iterdir())
    exec(accumulation, names)
    assert -1 <= names["monitor"].history[-1].figures["micro.cosine_min"] <= 1
    exec(hook, names)
    names["optimizer"].step()
    assert names["monitor"].steps == 6
