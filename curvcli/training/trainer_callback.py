"""`Monitor` as a callback of the `Trainer` of transformers."""

from typing import Any

from curvcli.errors import UsageError
from curvcli.training.monitor import Monitor

try:
    from transformers import TrainerCallback as _Callback
except ImportError:
    raise UsageError("TrainerCallback needs transformers", "pip install 'curvcli[hf]'") from None


class TrainerCallback(_Callback):
    """Measures the model that a `Trainer` trains; the options are those of `curvcli.Monitor`.

    Args:
        loss: None: the model's own, from the labels in the batch.
        options: of `Monitor`; the optimizer is the trainer's.
    """

    def __init__(self, loss: Any = None, **options: Any) -> None:
        self._loss, self._options = loss, options
        self.monitor: Monitor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Read the probe."""
        optimizer = {"optimizer": given["optimizer"]} if given.get("optimizer") else {}
        self.monitor = Monitor(given["model"], self._loss, **{**optimizer, **self._options})
        self.monitor.steps = state.global_step  # of a checkpoint that the run goes on from

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An optimizer step has been made."""
        assert self.monitor is not None
        if self.monitor.step():
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write what the loggers hold."""
        assert self.monitor is not None
        self.monitor.close()
