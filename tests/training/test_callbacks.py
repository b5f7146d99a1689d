"""Real runs of Lightning and transformers: the same losses with the callback and without, to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.training.loops import X, Y, network, same

pytestmark = pytest.mark.filterwarnings("default")


def lightning_run(tmp_path: Path, **options: Any) -> tuple[list[float], list[Any], Any]:
    """Four epochs of the digits' size, two batches to a step."""
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from curvcli.training.lightning_callback import LightningCallback

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network, self.losses = network(), list[float]()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.network(x)
            return out

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.losses.append(float(loss.detach()))
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.05)

    lightning.seed_everything(0, verbose=False)
    module = Module()
    callback = LightningCallback("cross_entropy", data=(X, Y), budget=None, **options)
    trainer = lightning.Trainer(
        max_epochs=4, accumulate_grad_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[callback] if options else [],
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True))
    return module.losses, list(module.state_dict().values()), callback.monitor


def test_lightning(tmp_path: Path) -> None:
    """Eight optimizer steps of two batches: measured after the third and the sixth."""
    losses, weights, _ = lightning_run(tmp_path)
    watched, same_weights, monitor = lightning_run(tmp_path, every=3)
    assert same([losses, weights], [watched, same_weights])
    assert [m.step for m in monitor.history] == [3, 6]
    assert [m.problem for m in monitor.history] == [None, None]
    assert monitor.history[0].learning_rate == 0.05


def test_lightning_stops_when_the_monitor_says_so(tmp_path: Path) -> None:
    """After the first measurement, at the end of that epoch's step."""
    losses, _, monitor = lightning_run(tmp_path, every=3, stop_if="hessian.loss > 0")
    assert monitor.should_stop
    assert len(losses) < 16


def trainer_run(tmp_path: Path, **options: Any) -> tuple[list[float], list[Any], Any]:
    """Six steps of a tiny GPT."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from curvcli.training.trainer_callback import TrainerCallback

    transformers.set_seed(0)
    config = transformers.GPT2Config(
        vocab_size=13, n_positions=8, n_embd=8, n_layer=1, n_head=2, attn_implementation="eager"
    )
    model = transformers.GPT2LMHeadModel(config)
    tokens = torch.randint(13, (24, 8), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": t, "labels": t} for t in tokens]
    probe = {"input_ids": tokens[:4], "labels": tokens[:4]}
    callback = TrainerCallback(data=probe, budget=None, **options)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_train_epochs=1, logging_steps=1, report_to=[],
        save_strategy="no", use_cpu=True, seed=0, disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=rows, callbacks=[callback] if options else []
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, list(model.state_dict().values()), callback.monitor


def test_the_trainer_of_transformers(tmp_path: Path) -> None:
    """A tiny GPT with dropout: the same weights to the bit, measured after every second step."""
    losses, weights, _ = trainer_run(tmp_path)
    watched, same_weights, monitor = trainer_run(tmp_path, every=2)
    assert len(losses) == 6
    assert same([losses, weights], [watched, same_weights])
    assert [(m.step, m.problem) for m in monitor.history] == [(2, None), (4, None), (6, None)]


def test_the_trainer_stops_when_the_monitor_says_so(tmp_path: Path) -> None:
    """After the second of six steps."""
    losses, _, monitor = trainer_run(tmp_path, every=2, stop_if="hessian.loss > 0")
    assert monitor.should_stop
    assert len(losses) == 2
