"""A Lanczos run on disk, so that a later run goes on instead of starting again.

Of vectors that are divided among processes the file has the parts one after the other: the first process writes what
all of them send, and each reads its own.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from curvcli.errors import CurvError, OutputError
from curvcli.files import check_regular
from curvcli.linalg.basis import Basis
from curvcli.linalg.lanczos.factorization import LanczosState, Tail
from curvcli.linalg.operator import SymmetricOperator, holders_of, offload_of, ranks_of
from curvcli.linalg.ranks import ALONE, Ranks, check_divided
from curvcli.linalg.storage import Rows
from curvcli.linalg.tensor_file import Stored, bytes_of, write_tensors

_FORMAT = "curvcli-lanczos/2"
# How far the length of a saved basis vector may be from 1; rounding leaves less in float16.
_UNIT = 1e-2
_SUSPENDED = "suspended."
_COUNTERS = ("processed", "first_cycle", "matvecs", "restarts", "copies_found", "rechecked")


def save_state(path: Path, state: LanczosState, fingerprint: str) -> None:
    """Write the basis, the projected matrix and the counters; a temporary name is renamed at the end.

    Args:
        path: where to.
        state: the run.
        fingerprint: of the operator; a state is only resumed for the same one.

    Raises:
        OutputError: ``path`` cannot be written.
    """
    scalars = {name: getattr(state, name) for name in _COUNTERS}
    scalars |= {
        "alphas": state.alphas,
        "betas": state.betas,
        "before_recheck": state.before_recheck,
        "share": state.share,
        "partial": state.orthogonality.partial,
    }
    scalars["suspended"] = [_entry(tail) for tail in state.suspended]
    scalars["live"] = _entry(state.live) if state.live else None
    tensors = {
        "basis": state.basis.whole().contiguous(),
        "t": torch.from_numpy(state.projected.copy()),
        "left_out": torch.from_numpy(
            state.left_out_MM[: state.processed, : state.processed].copy()
        ),
        "generator": state.generator.get_state(),
        **{
            f"{_SUSPENDED}{i}": tail.direction_N
            for i, tail in enumerate(state.suspended)
            if tail.direction_N is not None
        },
    }
    holders = _holders(state.basis.ranks)
    metadata = {"format": _FORMAT, "fingerprint": fingerprint, "scalars": json.dumps(scalars)}
    if holders.parted:
        metadata["divided"] = json.dumps(holders.lengths)
    # Of each process' own entries, in the order of the processes.
    metadata["sha256"] = " ".join(holders.collected([_digest(tensors, metadata)]))
    stored = {name: _stored(name, tensor, holders) for name, tensor in tensors.items()}
    try:
        write_tensors(path, stored, metadata, holders)
    except OSError as error:
        raise OutputError(
            f"{str(path)!r} cannot be written: {error.strerror}", "check --state"
        ) from None


def _holders(ranks: Ranks) -> Ranks:
    """The processes that each have a part of the state; `ALONE` where each has all of it."""
    return ranks if ranks.parted else ALONE


def _is_vectors(name: str) -> bool:
    """Whether a tensor's last axis is that of the vectors."""
    return name == "basis" or name.startswith(_SUSPENDED)


def _stored(name: str, own: Tensor, holders: Ranks) -> Stored:
    """A tensor as the file has it: vectors as a whole."""
    if not (holders.parted and _is_vectors(name)):
        return Stored.of(own)
    rows_MN = own.reshape(-1, own.shape[-1])
    whole = (*own.shape[:-1], sum(holders.lengths))
    return Stored(
        own.dtype,
        whole,
        lambda: (p for row_N in rows_MN for p in holders.in_turn(row_N, holders.lengths)),
    )


def load_state(path: Path, op: SymmetricOperator, capacity: int, fingerprint: str) -> LanczosState:
    """The run saved in ``path``, ready to go on with at most ``capacity`` vectors.

    Raises:
        CurvError: not a saved state, or one of another operator.
    """
    holders = holders_of(op)
    # What one process finds wrong, all end with.
    found, problem = None, None
    try:
        found = _read(path, op.n, holders, fingerprint, offload_of(op))
    except CurvError as error:
        problem = error
    if holders.largest(int(problem is not None)) or found is None:
        raise problem or CurvError(
            f"another process cannot go on from {path.name}", "all of them must see the same file"
        )
    tensors, scalars = found
    rows = tensors["basis"]
    lengths_M = holders.norms(rows) if len(rows) else rows.new_zeros(0)
    if not bool(((lengths_M - 1).abs() < _UNIT).all()):
        raise _no_state(path, op.n)
    if rows.shape[0] > min(capacity, op.n):
        raise CurvError(
            f"{path.name} holds {rows.shape[0]} vectors, but only {capacity} fit in memory",
            "raise --memory",
        )
    return _restored(op, capacity, tensors, scalars)


def _no_state(path: Path, n: int) -> CurvError:
    return CurvError(
        f"{path.name} holds no state of a run: its vectors are not {n} long and of length 1",
        "delete it to start anew",
    )


def _read(
    path: Path, n: int, holders: Ranks, fingerprint: str, offload: str | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """This process' tensors, and the numbers, of a file that is whole and belongs to this run."""
    check_regular(path, CurvError, "state")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise CurvError(
                    f"{path.name} is not a saved state of curvcli", "name another file by --state"
                )
            were = json.loads(metadata.get("divided", "[]"))
            check_divided(path.name, len(were), holders)
            tensors = {}
            for name in file.keys():  # noqa: SIM118  (not a dict)
                part = file.get_slice(name)
                if holders.parted and _is_vectors(name):
                    if part.get_shape()[-1] != n:
                        raise _no_state(path, n)
                    tensors[name] = part[..., holders.entries(n)]
                elif name == "basis" and len(part.get_shape()) == 2 and part.get_shape()[0]:
                    tensors[name] = _one_by_one(part, offload)
                else:
                    tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError, IndexError) as error:
        raise CurvError(
            f"{path.name} is not a readable state: {error}", "delete it to start anew"
        ) from None
    digests = metadata.pop("sha256", "").split(" ")
    if len(digests) != holders.size or digests[holders.rank] != _digest(tensors, metadata):
        raise CurvError(
            f"{path.name} is damaged: its checksum is not that of its content",
            "delete it to start anew",
        )
    if metadata.get("fingerprint") != fingerprint:
        raise CurvError(
            f"{path.name} belongs to another run: weights, data, loss or dtype differ",
            "delete it, or name another file by --state",
        )
    scalars = json.loads(metadata["scalars"])
    own = holders.entries(n)
    if not _fits(tensors, scalars, own.stop - own.start):
        raise _no_state(path, n)
    return tensors, scalars


def _one_by_one(part: Any, offload: str | None) -> Tensor:
    """The vectors in a file, each read to where vectors are kept: there may be no memory for all."""
    count, length = part.get_shape()
    rows = Rows(count, length, part[:1].dtype, torch.device("cpu"), offload)
    for i in range(count):
        rows.reserve(i)
        rows.data_MN[i] = part[i : i + 1][0]
    return rows.data_MN


def _restored(
    op: SymmetricOperator, capacity: int, tensors: dict[str, Tensor], scalars: dict[str, Any]
) -> LanczosState:
    """The state that was saved as these tensors and numbers."""
    basis = Basis(op.n, capacity, op.dtype, op.device, ranks_of(op), offload_of(op))
    for row in tensors["basis"]:
        basis.append(row.to(op.device))
    m = scalars["processed"]
    t_MM = np.zeros((basis.capacity, basis.capacity))
    t_MM[:m, :m] = tensors["t"].numpy()
    generator = torch.Generator()
    generator.set_state(tensors["generator"])
    live = _tail(scalars["live"]) if scalars["live"] else None
    state = LanczosState(
        basis,
        generator,
        t_MM,
        live=live,
        suspended=[
            _tail(entry, tensors[f"{_SUSPENDED}{i}"].to(op.device))
            for i, entry in enumerate(scalars["suspended"])
        ],
        alphas=scalars["alphas"],
        betas=scalars["betas"],
        before_recheck=scalars["before_recheck"],
        share=scalars.get("share", 1.0),
        **{name: scalars[name] for name in _COUNTERS},
    )
    state.orthogonality.partial = scalars.get("partial", False)
    if state.orthogonality.partial:
        state.left_out_MM[:m, :m] = tensors["left_out"].numpy()
    return state


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 of everything in a state but itself."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def _fits(tensors: dict[str, Tensor], scalars: dict[str, Any], n: int) -> bool:
    """Whether shapes and counters belong together, of vectors of which this process has ``n`` entries."""
    rows_MN, m = tensors["basis"], scalars["processed"]
    squares = (tensors["t"].shape, tensors["left_out"].shape)
    directions = [t for name, t in tensors.items() if name.startswith(_SUSPENDED)]
    return (
        rows_MN.shape[1:] == (n,)
        and m <= rows_MN.shape[0] <= m + 1
        and all(shape == (m, m) for shape in squares)
        and len(directions) == len(scalars["suspended"])
        and all(t.shape == (n,) for t in directions)
        and all(
            bool(torch.isfinite(row).all())
            for t in tensors.values()
            if t.is_floating_point()
            for row in torch.atleast_2d(t)  # a mask of all vectors may not fit
        )
    )


def _entry(tail: Tail) -> dict[str, Any]:
    return {"beta": tail.beta, "c_M": tail.c_M.tolist()}


def _tail(entry: dict[str, Any], direction_N: Tensor | None = None) -> Tail:
    return Tail(float(entry["beta"]), np.asarray(entry["c_M"], dtype=np.float64), direction_N)
