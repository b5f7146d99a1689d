"""Questions asked of divided weights have the answers that they have of whole ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import SAMPLES
from tests.distributed.asked import ASKED, PARTS
from tests.distributed.divided import case
from tests.distributed.test_command import run
from tests.distributed.test_ranks import started

# Rounding itself, of which every order of the same sums has its own.
_ROUNDING = (
    "residual",
    "floor",
    "error",
    "hvp_check",
    "true_change_residual",
    "found_residual",
    "overlap_error",
    "change_residual",
    "height_residual",
    "curvature_residual",
    "lambda_max_residual",
)
_SMALL = 1e-6
# A fit to the digits in which a cubic shows, and means over random vectors, whose entries lie elsewhere.
_TO_THEIR_ERROR = (
    "third_order", "average", "average_adaptive", "pac_bayes", "pac_bayes_adaptive",
)  # fmt: skip
COMMANDS = (
    ("saddle", "saddle", "--tol", "1e-9"),
    ("taylor", "digits_mlp", "--to", "other", "--tol", "1e-9", "--direction", "top"),
    ("step", "digits_mlp", "--method", "gradient", "--method", "lbfgs"),
    ("compare", "digits_mlp", "other", "--analysis", "hessian", "--per-class"),
    ("track", "digits_mlp", "other", "--lr", "0.1"),
    ("lr", "digits_mlp", "--steps", "6", "--max-trials", "3", "--confirm", "0"),
    ("landscape", "digits_mlp", "--to", "other", "--along", "gradient", "--points", "5"),
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ASKED)
def test_as_of_whole_weights(what: str, tmp_path: Path) -> None:
    agree(what, 2, tmp_path)


@pytest.mark.full
@pytest.mark.timeout(300)
def test_four_processes(tmp_path: Path) -> None:
    """More than some batches have samples."""
    agree("saddle", 4, tmp_path)


def agree(what: str, count: int, folder: Path) -> None:
    """So many processes say the same, and what one of them says of whole weights."""
    processes = started(count, ["-m", "tests.distributed.asked", str(folder), what])
    assert [p.wait(timeout=280) for p in processes] == [0] * count
    first, *_, second = (json.loads((folder / f"{r}.json").read_text()) for r in range(count))
    answers = (told["answers"] for told in (first, second))
    for asked, found, other in zip(ASKED[what], *answers, strict=True):
        assert found["divided"] == other["divided"], asked
        check(found["one"], found["divided"], str(asked))
    if what == PARTS:
        assert first["filters"] == second["filters"]
        check_filters(first["filters"])
        assert first["runs"]["divided"] == second["runs"]["divided"]
        check(first["runs"]["one"], first["runs"]["divided"], "runs")
        del first["health"]["one"][1]["blocks.2.0"]  # tied weights are named once
        check(first["health"]["one"], first["health"]["divided"], "health")


def check_filters(found: dict[str, Any]) -> None:
    """Each row of a weight is as long as that of the network, and points as it did; biases do not move."""
    model, _ = case("tied", torch.float64)
    weights = dict(model.named_parameters())
    assert found.keys() == weights.keys()
    for name, pair in found.items():
        drawn, made = (torch.tensor(x, dtype=torch.float64) for x in pair)
        wanted = torch.zeros_like(drawn)
        if drawn.dim() == 2:
            wanted = drawn * (weights[name].norm(dim=1) / drawn.norm(dim=1))[:, None]
        torch.testing.assert_close(made, wanted, rtol=1e-12, atol=0)


def check(one: Any, several: Any, where: str) -> None:
    """Equal to rounding, but for the sign that an eigenvector happens to have."""
    if isinstance(one, dict):
        assert one.keys() == several.keys(), where
        for key, value in one.items():
            check_entry(key, value, several[key], f"{where} {key}")
    elif isinstance(one, list):
        assert len(one) == len(several), where
        for i, pair in enumerate(zip(one, several, strict=True)):
            check(*pair, f"{where} {i}")
    elif isinstance(one, float):
        # A part in a million, or of rounding in losses of about 1.
        assert several == pytest.approx(one, rel=1e-6, abs=1e-12), where
    else:
        assert one == several, where


def check_entry(key: str, one: Any, several: Any, where: str) -> None:
    """`check` of what goes by that name."""
    if key in _ROUNDING:
        small = max(one or 0.0, several or 0.0) < _SMALL
        assert small or several == pytest.approx(one), where
    elif key == "quadratic_upper":  # a bound that hangs on a random start
        assert several == pytest.approx(one, rel=0.02), where
    elif key == "matvecs":  # where a residual falls below its limit hangs on rounding
        assert abs(one - several) <= 2, where
    elif key == "figures":
        first, second = ([f for f in found if _is_figure(f["path"])] for found in (one, several))
        check(first, second, where)
    elif key == "walk":
        check(_unsigned(one), _unsigned(several), where)
    elif key in _TO_THEIR_ERROR and one is not None:
        assert abs(one["value"] - several["value"]) < 5 * one["standard_error"], where
    else:
        check(one, several, where)


def _is_figure(path: str) -> bool:
    """And no rounding, of which ratios are compared too."""
    return path.rpartition(".")[2] not in _ROUNDING


def _unsigned(walk: list[dict[str, float]]) -> list[list[float]]:
    return sorted([abs(p["radius"]), p["change"], p["predicted"]] for p in walk)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_the_command(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """From files, each process its own part of them."""
    command, target, *options = arguments
    if "other" in options:
        other = moved(SAMPLES / f"{target}.safetensors", tmp_path)
        options = [str(other) if option == "other" else option for option in options]
    common = [command, str(SAMPLES / f"{target}.toml"), *options]
    common += ["--format", "json", "--dtype", "float64"]
    one = json.loads(run(*common).stdout)
    done = run(*common, "--ranks", "2", "--shard")
    assert (done.returncode, done.stderr) == (0, "")
    several = json.loads(done.stdout)
    assert several["cost"]["processes"]["count"] == 2
    first, second = ({k: a[k] for k in ("result", "findings")} for a in (one, several))
    check(first, second, command)


def moved(path: Path, folder: Path) -> Path:
    """Another checkpoint, a hundredth away."""
    torch.manual_seed(0)
    other = {n: t + 0.01 * torch.randn_like(t) for n, t in load_file(path).items()}
    save_file(other, folder / path.name)
    return folder / path.name


@pytest.mark.timeout(300)
def test_rules_are_held_where_their_questions_can_be_asked() -> None:
    target = str(SAMPLES / "digits_mlp.toml")
    rules = ["--rule", "hessian.top[0].value < 50", "--rule", "backprop.findings.errors == 0"]
    common = ["check", target, "--no-cache", "--ranks", "2", "--shard", "--format", "json"]
    own, given = (run(*common, *some) for some in ([], rules))
    assert (own.returncode, given.returncode) == (0, 2)
    decided = json.loads(own.stdout)["result"]["targets"][0]["rules"]
    assert [r["rule"].partition(".")[0] for r in decided] == ["info", "saddle"]
    assert "no rules about backprop, gradients" in json.loads(own.stdout)["notes"][0]
    first, second = json.loads(given.stdout)["result"]["targets"][0]["rules"]
    assert first["decision"] == "pass"
    assert "backprop does not work on weights that are divided" in second["message"]
