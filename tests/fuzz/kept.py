"""Fuzz targets for what curvcli itself keeps and is told: states, baselines, answers, rules, projects, optimizers."""

import contextlib
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from curvcli.analyses.check import cache
from curvcli.analyses.check.baseline import BaselineTarget, read_baseline, write_baseline
from curvcli.analyses.check.rules import make_rule
from curvcli.analyses.registry import NAMES, get
from curvcli.analyses.shared.settings import resolve_target
from curvcli.linalg.lanczos.factorization import start
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.lanczos.state import _digest, load_state, save_state
from curvcli.linalg.run_log import RunLog
from curvcli.linalg.stochastic.spectral_sums import Goal, estimate
from curvcli.loading.checkpoints.moments import read_preconditioner
from curvcli.report.cost import CostInfo
from curvcli.report.data import Envelope

_ROOM = 12
_DIAGONAL = torch.arange(20.0, dtype=torch.float64)
_OPERATOR: Any = SimpleNamespace(
    n=20, dtype=torch.float64, device=torch.device("cpu"), matvec=lambda v: _DIAGONAL * v
)
_SHAPES = {"weight": (3, 2), "bias": (3,)}


def read_state(path: Path) -> None:
    """A state that is taken must go on to eigenvalues of its operator."""
    state = load_state(path, _OPERATOR, _ROOM, "print")
    found = lanczos(_OPERATOR, Wanted(2, 1), state=state, max_matvecs=5)
    assert all(-1e-6 < value < 19 + 1e-6 for value in found.values_K), "a state gave other numbers"


def read_run_log(path: Path) -> None:
    """A log that is taken changes no digit."""
    assert _estimated(path) == _estimated(None), "a log gave other numbers"


def _estimated(path: Path | None) -> list[float]:
    log = RunLog(path, "print")
    generator = torch.Generator().manual_seed(0)
    goal = Goal(0.1, (np.abs,), max_steps=8, probes=3, max_matvecs=40)
    found, _ = estimate(_OPERATOR, 3, goal, generator, log=log)
    log.close()
    return [found.trace().value, found.square_sum().value, found.sum_of(np.abs).value]


def logs(folder: Path, _: str) -> list[bytes]:
    """A whole one, and ones cut between and within records."""
    _estimated(folder / "s")
    whole = (folder / "s").read_bytes()
    return [whole, whole[: len(whole) // 2], whole[:46], whole[:20], b""]


def read_kept_baseline(path: Path) -> None:
    read_baseline(path, may_be_missing=False)


def read_answer(path: Path) -> None:
    """An answer that is taken is the one that was kept."""
    with tempfile.TemporaryDirectory() as folder, _environment("XDG_CACHE_HOME", folder):
        place = cache.folder()
        place.mkdir(mode=0o700)
        (place / "key.json").write_bytes(path.read_bytes())
        found = cache.lookup("key", get("info"))
    assert found is None or found.version == "0", "a changed answer was taken"


def read_rule(path: Path) -> None:
    make_rule(path.read_text("utf-8", errors="replace"))


def read_project(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("pyproject.toml").write_bytes(path.read_bytes())
        _, tables = resolve_target("x.pt", {}, NAMES)
        for name, values in tables.items():
            get(name).validate(values, name)


def read_optimizer(path: Path) -> None:
    read_preconditioner(path, _SHAPES, [])


@contextlib.contextmanager
def _environment(name: str, value: str) -> Any:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        os.environ.update({name: before} if before is not None else {})


def states(folder: Path, _: str) -> list[bytes]:
    """An honest one, and some of wrong shapes with a right checksum."""
    state = start(_OPERATOR, _ROOM, seed=0)
    lanczos(_OPERATOR, Wanted(2, 1), tol=1e-12, state=state, max_matvecs=8)
    save_state(folder / "s", state, "print")
    with safe_open(folder / "s", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        metadata = {k: v for k, v in file.metadata().items() if k != "sha256"}
    found = [(folder / "s").read_bytes()]
    for name in ("basis", "t"):
        for tensor in (torch.ones(2, 2), torch.ones(0), torch.full_like(tensors[name], torch.nan)):
            changed = {**tensors, name: tensor}
            found.append(save(changed, {**metadata, "sha256": _digest(changed, metadata)}))
    return found


def baselines(folder: Path, _: str) -> list[bytes]:
    write_baseline(folder / "b.json", {"a.toml": BaselineTarget("0", None, [])})
    return [(folder / "b.json").read_bytes(), b"{}", b'{"targets": 3}', b"[" * 100_000]


def answers(folder: Path, _: str) -> list[bytes]:
    cost = CostInfo(0, 0, 0.0, None)
    kept: Envelope[Any] = Envelope(
        command="info", version="0", target=None, result=None, findings=[], notes=[], cost=cost
    )
    with _environment("XDG_CACHE_HOME", str(folder)):
        cache.store("key", kept)
        honest = (cache.folder() / "key.json").read_bytes()
    return [honest, msgspec.json.encode(kept), b"", honest.replace(b'"0"', b'"1"')]


def rules(_folder: Path, _: str) -> list[bytes]:
    return [
        b"info.nonfinite == 0", b"hessian.top[0].value < 2 * baseline", b"(" * 5000, b"info.bytes ** 9 ** 9 ** 9 < 1",
        b"all(gradients.layers[*].gradient_to_weight < 1e3)", b"__import__('os').system('x') == 0", b"9" * 5000,
        b'saddle.verdict not in ["strict-saddle"]', b"a.b.c", b"info.tensors[-1].norm < 1", b"lambda: 0",
    ]  # fmt: skip


def projects(_folder: Path, _: str) -> list[bytes]:
    return [
        b'[tool.curvcli]\nseed = 3\n[tool.curvcli.hessian]\ntop = 3\n', b"tool = 3", b"[tool]\ncurvcli = []",
        b'[tool.curvcli]\nmodel = "evil.py:Net"\n', b"[tool.curvcli]\nunsafe-pickle = true\n", b"a = " + b"[" * 5000,
        b'[tool.curvcli.check]\nrules = ["info.bytes < 1"]\nupdate-baseline = true\n',
    ]  # fmt: skip


def optimizers(folder: Path, _: str) -> list[bytes]:
    layer = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(layer.named_parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    honest = optimizer.state_dict()
    itself: dict[str, Any] = {}
    itself["optimizer"] = itself
    found = []
    for content in (
        honest, {"optimizer": honest}, itself, {"state": {}, "param_groups": [{"params": [0, 1]}]},
        {"state": {0: {"exp_avg_sq": 3}}, "param_groups": [{"params": [0]}]}, {"state": 3, "param_groups": 3},
        {"state": {0: 3}, "param_groups": [3]},
        {**honest, "param_groups": [{**honest["param_groups"][0], "betas": 3, "lr": "x", "eps": None}]},
    ):  # fmt: skip
        torch.save(content, folder / "o")
        found.append((folder / "o").read_bytes())
    return found
