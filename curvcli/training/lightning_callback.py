"""`Monitor` as a callback of Lightning."""

from typing import Any

from curvcli.errors import UsageError
from curvcli.training.monitor import Monitor

try:
    from lightning.pytorch import Callback
except ImportError:
    raise UsageError("LightningCallback needs Lightning", "pip install lightning") from None


class LightningCallback(Callback):  # type: ignore[misc]
    """Measures the module that a `Trainer` trains; the options are those of `curvcli.Monitor`.

    Args:
        loss: of the module's outputs and the targets; or ``objective=lambda module, batch: …``.
        options: of `Monitor`; the optimizer is the trainer's first one.
    """

    def __init__(self, loss: Any = None, **options: Any) -> None:
        super().__init__()
        self._loss, self._options = loss, options
        self.monitor: Monitor | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Read the probe."""
        optimizer = {"optimizer": trainer.optimizers[0]} if trainer.optimizers else {}
        self.monitor = Monitor(pl_module, self._loss, **{**optimizer, **self._options})
        self.monitor.steps = trainer.global_step  # of a checkpoint that the run goes on from

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Count the optimizer steps since the batch before: none within an accumulation."""
        assert self.monitor is not None
        while self.monitor.steps < trainer.global_step:
            if self.monitor.step():
                trainer.should_stop = True

    def on_train_end(self, *_: Any) -> None:
        """Write what the loggers hold."""
        assert self.monitor is not None
        self.monitor.close()
