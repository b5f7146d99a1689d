"""`init` writes a target file that works, and says what it does not know."""

from pathlib import Path
from typing import Any

import pytest
import torch

import curvcli
from curvcli.errors import ModelError, UsageError
from tests.conftest import SAMPLES
from tests.oracles.program import answer


def test_init_writes_a_file_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = curvcli.analyse("init", curvcli.load(str(SAMPLES / "digits_mlp.safetensors"))).result
    assert result.recognised == "MLP 64 → 128 → 64 → 10"
    assert result.settings == {"model": "auto"}
    assert result.unknown == ["data", "loss"]
    text = (tmp_path / "digits_mlp.toml").read_text()
    assert "assumed" in text
    filled = text.replace('# data = "val.npz"', f'data = "{SAMPLES / "digits.npz"}"')
    filled = filled.replace('# loss = "cross_entropy"', 'loss = "cross_entropy"')
    (tmp_path / "digits_mlp.toml").write_text(filled)
    # The sample's activation is GELU, which no shape tells.
    run = curvcli.load("digits_mlp.toml", model_args={"activation": "gelu"})
    true = curvcli.load(str(SAMPLES / "digits_mlp.toml")).objective
    assert run.objective.loss == pytest.approx(true.loss, rel=1e-6)
    with pytest.raises(UsageError, match="exists"):
        curvcli.analyse("init", curvcli.load(str(SAMPLES / "digits_mlp.safetensors")))
    with pytest.raises(ModelError, match="Did you mean 'gelu'"):
        _ = curvcli.load("digits_mlp.toml", model_args={"activation": "gelo"}).objective


def test_init_says_what_it_does_not_know(tmp_path: Path) -> None:
    to = tmp_path / "t.toml"
    run = curvcli.load(str(SAMPLES / "digits_lstm.safetensors"))
    result = curvcli.analyse("init", run, to=str(to)).result
    assert result.recognised is None
    assert result.unknown == ["model", "data", "loss"]
    assert '# model = "models.py:Net"' in to.read_text()


def test_what_is_given_and_what_the_checkpoint_says_stand_in_the_file(tmp_path: Path) -> None:
    """Settings relative to the file, the optimizer's own settings, and the figures of one forward pass."""
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    x, y = torch.randn(20, 4), torch.arange(20) % 3
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "global_step": 7}
    (tmp_path / "run").mkdir()
    torch.save(saved, tmp_path / "run" / "w.pt")
    torch.save({"x": x, "y": y}, tmp_path / "data.pt")
    (tmp_path / "net.py").write_text(
        "import torch\n\ndef build():\n    return torch.nn.Linear(4, 3)\n"
    )
    to = tmp_path / "run" / "w.toml"
    subject = curvcli.load(
        str(tmp_path / "run" / "w.pt"), model=f"{tmp_path}/net.py:build", data=str(tmp_path / "data.pt"),
        loss="cross_entropy",
    )  # fmt: skip
    result = curvcli.analyse("init", subject, to=str(to)).result
    assert result.settings == {
        "model": "../net.py:build",
        "data": "../data.pt",
        "loss": "cross_entropy",
    }
    assert result.unknown == []
    known = result.training
    assert known is not None
    assert (known.step, known.optimizer, known.learning_rate) == (7, "momentum", 0.1)
    assert (known.momentum, known.betas, known.weight_decay) == (0.9, None, 1e-3)
    text = to.read_text()
    assert "step 7, optimizer momentum, learning rate 0.1, momentum 0.9" in text
    assert "weight-decay = 0.001" in text
    expected = float(torch.nn.functional.cross_entropy(model(x), y).detach())
    assert result.sanity is not None
    assert result.sanity.loss == pytest.approx(expected, rel=1e-6)
    assert curvcli.load(str(to)).objective.loss == pytest.approx(expected, rel=1e-6)


def test_the_form_that_fits_the_data_stands_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample's activation is GELU, which no shape tells: the loss on the data does."""
    monkeypatch.chdir(tmp_path)
    subject = curvcli.load(
        str(SAMPLES / "digits_mlp.safetensors"), data=str(SAMPLES / "digits.npz"), loss="cross_entropy"
    )  # fmt: skip
    result = curvcli.analyse("init", subject).result
    text = (tmp_path / "digits_mlp.toml").read_text()
    assert "assumed" not in text
    confirmed = text.replace("# model-args", "model-args")
    assert 'model-args = { activation = "gelu" }' in confirmed
    (tmp_path / "digits_mlp.toml").write_text(confirmed)
    written = curvcli.load("digits_mlp.toml")
    true = curvcli.load(str(SAMPLES / "digits_mlp.toml")).objective
    assert written.objective.loss == pytest.approx(true.loss, rel=1e-6)
    assert result.sanity is not None
    assert result.sanity.loss == pytest.approx(true.loss, rel=1e-6)


def test_every_setting_that_is_given_stands_in_the_file(tmp_path: Path) -> None:
    """What the file says is what was given: read back, the settings are the same."""
    to = tmp_path / "t.toml"
    given: dict[str, Any] = {
        "model": str(SAMPLES / "models.py") + ":digits_mlp",
        "data": str(SAMPLES / "digits.npz"),
        "loss": "cross_entropy",
        "loss_args": {"label_smoothing": 0.1},
        "params": ["fc*", 'a"b'],
        "weight_decay": 1e-4,
        "batch_size": 50,
        "train_mode": True,
        "dtype": "float64",
    }
    subject = curvcli.load(str(SAMPLES / "digits_mlp.safetensors"), **given)
    curvcli.analyse("init", subject, to=str(to))
    read = curvcli.load(str(to)).spec
    for name, value in given.items():
        if name not in ("model", "data"):
            assert getattr(read, name) == value
    assert Path(str(read.data)).samefile(SAMPLES / "digits.npz")


@pytest.mark.parametrize(
    ("loss", "scale", "told"),
    [("cross_entropy", 1.0, "applies softmax itself"), ("nll", 100.0, "the RMS of input 0")],
)
def test_what_one_forward_pass_shows_is_in_the_first_line(
    tmp_path: Path, loss: str, scale: float, told: str
) -> None:
    """A softmax before cross_entropy, and inputs that were not divided: said where the file is written."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(1))
    torch.save(model.state_dict(), tmp_path / "m.pt")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))\n"
    )
    torch.save({"x": scale * torch.randn(30, 4), "y": torch.arange(30) % 3}, tmp_path / "d.pt")
    _, found = answer(
        "init", str(tmp_path / "m.pt"), "--model", f"{tmp_path}/net.py:build", "--data", str(tmp_path / "d.pt"),
        "--loss", loss, "--to", str(tmp_path / "m.toml"),
    )  # fmt: skip
    assert found["verdict"]["level"] == "attention"
    assert told in found["verdict"]["sentence"]
