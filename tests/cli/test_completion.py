"""The shell completes what a command takes, from files that are read and never run."""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from curvcli.cli.completion import LOSSES, tensor_names
from curvcli.cli.main import make_app
from curvcli.loading.loss import NAMED, WHOLE_BATCHES
from curvcli.loading.models.own_loss import OWN
from tests.oracles.program import ROOT

MLP = "sample_models/digits_mlp.toml"


def completed(line: str) -> list[str]:
    """What zsh is offered for the last word."""
    done = CliRunner().invoke(
        make_app(),
        prog_name="curvcli",
        env={"_CURVCLI_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line},
    )
    return [w.split('"')[1] for w in done.stdout.replace("_arguments", "").split("\n") if '"' in w]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("curvcli hessian --loss cr", ["cross_entropy"]),
        ("curvcli hessian --order m", ["magnitude"]),
        ("curvcli schema bac", ["backprop"]),
        (f"curvcli hessian {MLP} --params fc1", ["fc1.bias", "fc1.weight"]),
        (f"curvcli jacobian {MLP} --wrt f", ["fc1", "fc2"]),
        ("curvcli hessian sample_models/saddle", ["sample_models/saddle.safetensors", "sample_models/saddle.toml"]),
        ("curvcli hessian --data sample_models/text", ["sample_models/text.npz", "sample_models/text.txt"]),
    ],
)  # fmt: skip
def test_what_is_offered(line: str, offered: list[str]) -> None:
    assert completed(line) == offered


def test_every_loss_is_offered() -> None:
    """The list stands apart from the losses, which import torch."""
    assert {*NAMED, *WHOLE_BATCHES, *OWN} <= set(LOSSES)


def test_names_in_a_pickle_are_read_without_running_it(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    torch.save({"model": model.state_dict(), "evil": Evil()}, tmp_path / "m.pt")
    assert tensor_names(tmp_path / "m.pt") == ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert not (tmp_path / "ran").exists()
    assert tensor_names(tmp_path / "none.pt") == []


def test_torch_stays_out() -> None:
    import subprocess

    code = (
        "import sys, os\nfrom typer.testing import CliRunner\nfrom curvcli.cli.main import make_app\n"
        f"env = {{'_CURVCLI_COMPLETE': 'complete_zsh', '_TYPER_COMPLETE_ARGS': 'curvcli hessian {MLP} --params fc'}}\n"
        "assert 'fc1.weight' in CliRunner().invoke(make_app(), prog_name='curvcli', env=env).stdout\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
