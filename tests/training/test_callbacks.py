"""Real runs of torch, Lightning and transformers: the same losses with each callback and without, to the bit."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from curvcli.training.monitor import Monitor
from tests.training.loops import same

pytestmark = pytest.mark.filterwarnings("default")


class Classifier(nn.Module):
    """Of digits, with dropout and running statistics, as a Trainer calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10)
        )

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def gpt() -> nn.Module:
    """One layer, with dropout."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model: nn.Module = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=13, n_positions=8, n_embd=8, n_layer=1, n_head=2, attn_implementation="eager"
        )
    )
    return model


class Task(NamedTuple):
    """What is trained: 24 rows, four to a batch."""

    model: Callable[[], nn.Module]
    rows: list[dict[str, Tensor]]
    watched: dict[str, Any]
    """Loss and data of the monitor."""


def own_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**batch)["loss"]
    return loss


def task(name: str) -> Task:
    if name == "digits":
        data = load_digits()
        x, y = torch.tensor(data.data[:24] / 16).float(), torch.tensor(data.target[:24])
        rows = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
        return Task(Classifier, rows, {"objective": own_loss, "data": {"x": x, "labels": y}})
    tokens = torch.randint(13, (24, 8), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": t, "labels": t} for t in tokens]
    return Task(gpt, rows, {"data": {"input_ids": tokens[:4], "labels": tokens[:4]}})


Ran = tuple[list[float], list[Any], Any]


def loader(of: Task) -> Iterable[dict[str, Tensor]]:
    rows: Any = of.rows
    return DataLoader(rows, batch_size=4, shuffle=True)


def plain_run(of: Task, _: Path, **options: Any) -> Ran:
    """Six steps, counted by a hook of the optimizer."""
    torch.manual_seed(0)
    model = of.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    monitor = None
    if options:
        monitor = Monitor(model, **of.watched, optimizer=optimizer, budget=None, **options)
        monitor.attach(optimizer)
    losses = []
    for batch in loader(of):
        loss = own_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if monitor is not None and monitor.should_stop:
            break
    return losses, list(model.state_dict().values()), monitor


def lightning_run(
    of: Task, tmp_path: Path, begin: str | None = None, epochs: int = 2, **options: Any
) -> Ran:
    """Two epochs, two batches to a step."""
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from curvcli.training.lightning_callback import LightningCallback

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network, self.losses = of.model(), list[float]()

        def forward(self, **batch: Tensor) -> Any:
            return self.network(**batch)

        def training_step(self, batch: Any, _: int) -> Tensor:
            loss = own_loss(self, batch)
            self.losses.append(float(loss.detach()))
            self.log("loss", loss, batch_size=4)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    lightning.seed_everything(0, verbose=False)
    module = Module()
    watched = {"objective": own_loss, **of.watched}
    callback = LightningCallback(**watched, budget=None, **options) if options else None
    trainer = lightning.Trainer(
        max_epochs=epochs, accumulate_grad_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[callback] if callback else [],
    )  # fmt: skip
    trainer.fit(module, loader(of), ckpt_path=begin, weights_only=False if begin else None)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    return module.losses, list(module.state_dict().values()), callback and callback.monitor


def trainer_run(
    of: Task, tmp_path: Path, begin: str | None = None, epochs: int = 1, **options: Any
) -> Ran:
    """Six steps."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from curvcli.training.trainer_callback import TrainerCallback

    transformers.set_seed(0)
    model = of.model()
    callback = TrainerCallback(**of.watched, budget=None, **options) if options else None
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_train_epochs=epochs, logging_steps=1,
        report_to=[], save_strategy="epoch", use_cpu=True, seed=0, disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=of.rows, callbacks=[callback] if callback else []
    )
    trainer.train(resume_from_checkpoint=begin)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, list(model.state_dict().values()), callback and callback.monitor


RUNS: dict[str, Callable[..., Ran]] = {
    "hook": plain_run,
    "lightning": lightning_run,
    "transformers": trainer_run,
}


@pytest.mark.parametrize("network", ["digits", "gpt"])
@pytest.mark.parametrize("loop", RUNS)
def test_the_losses_are_those_without_the_callback(loop: str, network: str, tmp_path: Path) -> None:
    """Every loss and weight to the bit; measured after each second of six optimizer steps."""
    run, of = RUNS[loop], task(network)
    losses, weights, _ = run(of, tmp_path)
    watched, same_weights, monitor = run(of, tmp_path, every=2)
    assert len(losses) == (12 if loop == "lightning" else 6)  # of micro-batches, or of steps
    assert len(set(losses)) == len(losses)
    assert same([losses, weights], [watched, same_weights])
    assert [(m.step, m.problem) for m in monitor.history] == [(2, None), (4, None), (6, None)]
    assert monitor.history[0].figures["hessian.top[0].value"] > 0
    # The schedule of transformers is linear over six steps; the step made next has a rate of 4/6.
    assert monitor.history[0].learning_rate == pytest.approx(
        1e-2 * (4 / 6 if loop == "transformers" else 1)
    )


@pytest.mark.parametrize("loop", RUNS)
def test_a_run_ends_when_the_monitor_says_so(loop: str, tmp_path: Path) -> None:
    """After the second of six steps."""
    losses, _, monitor = RUNS[loop](
        task("digits"), tmp_path, every=2, stop_if="gradients.loss > 0", analyses=["gradients"]
    )
    assert monitor.should_stop
    assert [m.step for m in monitor.history] == [2]
    assert len(losses) == (4 if loop == "lightning" else 2)


@pytest.mark.parametrize("loop", ["lightning", "transformers"])
def test_a_run_that_goes_on_from_a_checkpoint_counts_from_there(loop: str, tmp_path: Path) -> None:
    """Six steps and a checkpoint, then as many again: nothing is measured for the steps that were made before."""
    of, run = task("digits"), RUNS[loop]
    run(of, tmp_path)
    begin = tmp_path / ("end.ckpt" if loop == "lightning" else "checkpoint-6")
    epochs = 4 if loop == "lightning" else 2
    *_, monitor = run(of, tmp_path, str(begin), epochs, every=4, analyses=["gradients"])
    assert [m.step for m in monitor.history] == [8, 12]
