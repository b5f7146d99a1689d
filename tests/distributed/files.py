"""What a run on divided weights leaves on disk, and goes on from: called by each process."""

import errno
import json
from pathlib import Path
from typing import IO, Any, cast
from unittest.mock import patch

import torch

from curvcli import Objective
from curvcli.errors import CurvError, OutputError
from curvcli.files import Replacement
from curvcli.linalg import tensor_file
from curvcli.linalg.lanczos.factorization import start
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.lanczos.state import load_state, save_state
from curvcli.linalg.run_log import RunLog
from curvcli.linalg.stochastic.spectral_sums import Goal, estimate
from curvcli.operators.curvature.hessian import Hessian

_WANTED, _TOL, _ROOM = Wanted(top=3, bottom=1), 1e-9, 14


def _full_disk(path: Path) -> Replacement:
    """Takes the header, and nothing more."""
    made = Replacement(path)
    made.file = cast(Any, _Full(made.file))
    return made


class _Full:
    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._writes = file, 0

    def write(self, content: bytes) -> int:
        self._writes += 1
        if self._writes > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def states(objective: Objective, path: Path) -> dict[str, Any]:
    """Of a Lanczos run that ends early, is saved, and goes on: its eigenvalues and products, and those of one go."""
    operator, rank = Hessian(objective), objective.ranks.rank
    whole_state = start(operator, _ROOM, 0)
    whole = lanczos(operator, _WANTED, tol=_TOL, state=whole_state)
    state, half = start(operator, _ROOM, 0), whole_state.matvecs // 2
    lanczos(operator, _WANTED, tol=_TOL, state=state, max_matvecs=half)
    save_state(path, state, "print")
    before = path.read_bytes() if rank == 0 else b""
    lanczos(operator, _WANTED, tol=_TOL, state=state, max_matvecs=half + 2)
    # The first process alone writes, and all of them are told.
    with patch.object(tensor_file, "Replacement", Replacement if rank else _full_disk):
        told = _told(lambda: save_state(path, state, "print"), OutputError)
    again = load_state(path, operator, _ROOM, "print")
    out = {
        "unharmed": rank > 0
        or (path.read_bytes() == before and len(list(path.parent.glob("*.tmp"))) == 0),
        "full": told,
        "half": again.matvecs,
        "whole": [whole.values_K.tolist(), whole_state.matvecs],
        "other": _told(lambda: load_state(path, operator, _ROOM, "another print"), CurvError),
    }
    out["on"] = [lanczos(operator, _WANTED, tol=_TOL, state=again).values_K.tolist(), again.matvecs]
    if rank == 0:  # the last process' entries of the last vector
        content = bytearray(before)
        content[_end_of_basis(before) - 3] ^= 1
        path.write_bytes(content)
    objective.ranks.largest(0)
    out["damaged"] = _told(lambda: load_state(path, operator, _ROOM, "print"), CurvError)
    return out


def _end_of_basis(content: bytes) -> int:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return 8 + length + int(header["basis"]["data_offsets"][1])


def logs(objective: Objective, path: Path) -> dict[str, Any]:
    """Of sums over the spectrum: figures and products without a log, until its middle, from there, and again."""
    out: dict[str, Any] = {}

    def run(at: Path | None, products: int) -> tuple[list[float], int]:
        before = objective.cost.matvecs
        log = RunLog(at, "print", objective.ranks)
        goal = Goal(1e-9, probes=4, max_matvecs=products)
        found, _ = estimate(Hessian(objective), 3, goal, torch.Generator().manual_seed(0), log=log)
        log.close()
        return [found.trace().value, found.square_sum().value], objective.cost.matvecs - before

    out["alone"] = run(None, 24)
    out["first"] = run(path, 12)
    if objective.ranks.rank == 0:  # killed while it was writing the last record
        content = path.read_bytes()
        path.write_bytes(content[:-5])
    objective.ranks.largest(0)
    out["on"] = run(path, 24)
    out["again"] = run(path, 24)
    return out


def _told(action: Any, kind: type[CurvError]) -> str:
    try:
        action()
    except kind as error:
        return error.message
    return ""
