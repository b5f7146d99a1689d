"""Figures in TensorBoard."""

from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from curvcli.training.loggers import tag


class TensorBoard:
    """Event files in a directory; ``runs/`` by default, as torch has it."""

    def __init__(self, place: str | None) -> None:
        self._writer = SummaryWriter(place)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one step."""
        for name, value in figures.items():
            self._writer.add_scalar(tag(name), value, step)
        self._writer.flush()

    def close(self) -> None:
        """Write what is held."""
        self._writer.close()


make = TensorBoard
