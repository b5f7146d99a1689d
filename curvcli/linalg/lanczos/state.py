"""A Lanczos run on disk, so that a later run goes on instead of starting again."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from curvcli.errors import CurvError, OutputError
from curvcli.files import Replacement, check_regular
from curvcli.linalg.basis import Basis
from curvcli.linalg.lanczos.factorization import LanczosState, Tail
from curvcli.linalg.operator import SymmetricOperator, offload_of, ranks_of
from curvcli.linalg.vectors import euclidean_norm

_FORMAT = "curvcli-lanczos/2"
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8",
}  # fmt: skip
# How far the length of a saved basis vector may be from 1; rounding leaves less in float16.
_UNIT = 1e-2
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
            f"suspended.{i}": tail.direction_N
            for i, tail in enumerate(state.suspended)
            if tail.direction_N is not None
        },
    }
    metadata = {"format": _FORMAT, "fingerprint": fingerprint, "scalars": json.dumps(scalars)}
    metadata["sha256"] = _digest(tensors, metadata)
    try:
        _write(path, tensors, metadata)
    except OSError as error:
        raise OutputError(
            f"{str(path)!r} cannot be written: {error.strerror}", "check --state"
        ) from None


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, written from where the tensors are: a basis may be larger than the memory.

    The layout is that of the format's description: length of the header, header, then the tensors, widest entries
    first, so that each begins at a multiple of its entries' size.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end, ordered = 0, sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in ordered:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    made = Replacement(path)
    try:
        made.file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            made.file.write(_bytes_of(tensors[name]))
    except BaseException:
        made.discard()
        raise
    made.commit()


def _bytes_of(tensor: Tensor) -> memoryview:
    """Those of its entries, where they are if they lie on the host."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def load_state(path: Path, op: SymmetricOperator, capacity: int, fingerprint: str) -> LanczosState:
    """The run saved in ``path``, ready to go on with at most ``capacity`` vectors.

    Raises:
        CurvError: not a saved state, or one of another operator.
    """
    tensors, metadata = _read(path)
    if metadata.get("fingerprint") != fingerprint:
        raise CurvError(
            f"{path.name} belongs to another run: weights, data, loss or dtype differ",
            "delete it, or name another file by --state",
        )
    scalars = json.loads(metadata["scalars"])
    if not _fits(tensors, scalars, op.n):
        raise CurvError(
            f"{path.name} holds no state of a run: its vectors are not {op.n} long and of length 1",
            "delete it to start anew",
        )
    rows = tensors["basis"]
    if rows.shape[0] > min(capacity, op.n):
        raise CurvError(
            f"{path.name} holds {rows.shape[0]} vectors, but only {capacity} fit in memory",
            "raise --memory",
        )
    return _restored(op, capacity, tensors, scalars)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that is whole."""
    check_regular(path, CurvError, "state")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise CurvError(
                    f"{path.name} is not a saved state of curvcli", "name another file by --state"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise CurvError(
            f"{path.name} is not a readable state: {error}", "delete it to start anew"
        ) from None
    if metadata.pop("sha256", None) != _digest(tensors, metadata):
        raise CurvError(
            f"{path.name} is damaged: its checksum is not that of its content",
            "delete it to start anew",
        )
    return tensors, metadata


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
            _tail(entry, tensors[f"suspended.{i}"].to(op.device))
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
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _fits(tensors: dict[str, Tensor], scalars: dict[str, Any], n: int) -> bool:
    """Whether shapes and counters belong together, and the basis is made of unit vectors."""
    rows_MN, m = tensors["basis"], scalars["processed"]
    squares = (tensors["t"].shape, tensors["left_out"].shape)
    directions = [t for name, t in tensors.items() if name.startswith("suspended.")]
    return (
        rows_MN.shape[1:] == (n,)
        and m <= rows_MN.shape[0] <= m + 1
        and all(shape == (m, m) for shape in squares)
        and len(directions) == len(scalars["suspended"])
        and all(t.shape == (n,) for t in directions)
        and all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())
        and all(abs(float(euclidean_norm(row_N)) - 1) < _UNIT for row_N in rows_MN)
    )


def _entry(tail: Tail) -> dict[str, Any]:
    return {"beta": tail.beta, "c_M": tail.c_M.tolist()}


def _tail(entry: dict[str, Any], direction_N: Tensor | None = None) -> Tail:
    return Tail(float(entry["beta"]), np.asarray(entry["c_M"], dtype=np.float64), direction_N)
