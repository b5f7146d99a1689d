"""The tutorial runs from its first cell to its last."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.oracles.program import ROOT


@pytest.mark.filterwarnings("default")
def test_the_tutorial_runs(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell; four measurements, a page in the place of an answer, and rules that hold."""
    for library in ("nbformat", "nbclient", "ipykernel"):
        pytest.importorskip(library, reason="pip install 'curvcli[notebook]'")
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    spec = tmp_path / "share" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "here", "language": "python"}))  # fmt: skip
    shutil.copy(samples / "digits.npz", tmp_path)
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    nbformat.validate(notebook)
    run: Any = nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )  # fmt: skip
    run.execute()
    outputs = [cell["outputs"] for cell in notebook.cells if cell.cell_type == "code"]
    steps = outputs[1][0]["text"].splitlines()
    assert [line.partition(":")[0] for line in steps] == [f"step {n}" for n in (50, 100, 150, 200)]
    assert "Sharpest curvature" in outputs[2][-1]["data"]["text/html"]
    assert "'1.weight': (6, 32, 64)" in outputs[3][0]["data"]["text/plain"]
    assert outputs[5][-1]["data"]["text/plain"] == "True"
