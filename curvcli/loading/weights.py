"""The file of weights of a target: opened once, and the same file to the end."""

from functools import cached_property
from pathlib import Path

from curvcli.errors import CheckpointError
from curvcli.loading.checkpoints.checkpoint import Checkpoint
from curvcli.loading.checkpoints.formats import open_checkpoint
from curvcli.loading.settle import Signature, read_settled, signature
from curvcli.loading.spec import TargetSpec


class Weights:
    """A checkpoint that is read by and by.

    Args:
        spec: names it, or does not.
        notes: receives what is noted of it.
    """

    def __init__(self, spec: TargetSpec, notes: list[str]) -> None:
        self._spec, self._notes = spec, notes
        self._signature: Signature = ()

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The file, opened; None where none is named."""
        if self._spec.checkpoint is None:
            return None
        path = Path(self._spec.checkpoint)
        checkpoint = read_settled(
            path, lambda: open_checkpoint(path, self._spec.unsafe_pickle, self._spec.weights)
        )
        self._signature = signature(path)
        self._notes.extend(checkpoint.notes)
        return checkpoint

    @cached_property
    def sha256(self) -> str | None:
        """Of the file."""
        found = self.checkpoint.sha256() if self.checkpoint else None
        self.check_unchanged()
        return found

    @property
    def known_sha256(self) -> str | None:
        """`sha256`, if it has been asked for."""
        return self.__dict__.get("sha256")

    def check_unchanged(self) -> None:
        """Whether the file is still the one that was opened.

        Raises:
            CheckpointError: it changed in the meantime: parts of what was read may belong to different versions.
        """
        path = Path(self._spec.checkpoint or "")
        if self.checkpoint is not None and signature(path) != self._signature:
            code, _, _ = (self._spec.model or "").rpartition(":")
            again = (
                f"; where importing {Path(code).name} trains anew, put the training under if __name__ == '__main__'"
                if code.endswith(".py")
                else ""
            )
            raise CheckpointError(
                f"{path.name} changed while it was read: it is still being written",
                f"wait until it is complete; write checkpoints under another name and rename them{again}",
            )
