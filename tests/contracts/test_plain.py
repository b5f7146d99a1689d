"""Every command gives the same figures with `--plain`, which turns all rewritten layers off.

In float64, on a convolutional network with batch normalisation and on a transformer. Rewrites change the order of sums,
some eps. Iterations make the same number of steps from the same start; what they give then differs by eps times its
condition, below 1e-6 here. What is below 1e-12 is zero. Fields that are rounding themselves are left out.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from curvcli.operators.autodiff.rewrites.registry import REWRITES
from tests.contracts.cases import answer_of, workplace
from tests.oracles.differences import differences

_FEW = ("--batch-size", "2", "--max-batches", "1", "--dtype", "float64")
_SMALL = ("--top", "2", "--bottom", "1", "--max-matvecs", "20")
COMMANDS: dict[str, tuple[str, ...]] = {
    "hessian": ("hessian", *_SMALL),
    "hessian-layers": ("hessian", *_SMALL, "--per-layer", "--layer-probes", "2"),
    "hessian-ggn": ("hessian", *_SMALL, "--matrix", "ggn", "--exact-rows", "0"),
    "hessian-gram": ("hessian", *_SMALL, "--matrix", "ggn"),
    "hessian-fisher": ("hessian", *_SMALL, "--matrix", "fisher"),
    "hessian-empirical": ("hessian", *_SMALL, "--matrix", "empirical-fisher"),
    "trace": ("trace", "--max-matvecs", "40", "--steps", "8"),
    "density": ("density", "--steps", "10", "--probes", "2", "--max-probes", "2", "--outliers", "0"),
    "saddle": ("saddle", "--max-matvecs", "30"),
    "taylor": ("taylor", "--max-matvecs", "20", "--points", "5"),
    "step": ("step", "--max-matvecs", "20", "--pairs", "2", "--method", "gradient", "--method", "newton-npc"),
    "landscape": ("landscape", "--points", "5", "--refine", "2"),
    "sharpness": ("sharpness", "--draws", "2", "--probes", "2", "--steps", "2", "--max-matvecs", "10"),
    "gradients": ("gradients",),
    "jacobian": ("jacobian", "--top", "2"),
    "backprop": ("backprop", "--samples", "2"),
    "track": ("track",),
    "compare": ("compare", "--points", "5", "--subspace", "0", "--analysis", "gradients"),
}  # fmt: skip
_ROUNDING = re.compile(
    r"residual|error|check|floor|probability|resolution|reach|lower|upper|cost|more_products|best_step|third_order"
)


@pytest.fixture(scope="module", autouse=True)
def _workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with workplace(tmp_path_factory.mktemp("plain")):
        yield


def without_rounding(value: Any) -> Any:
    """The answer without fields that measure rounding."""
    if isinstance(value, dict):
        return {k: without_rounding(v) for k, v in value.items() if not _ROUNDING.search(k)}
    return [without_rounding(v) for v in value] if isinstance(value, list) else value


# What the transformer adds are attention, its norms and GELU in products; all other commands multiply alike.
_CASES = [("digits_cnn", name) for name in COMMANDS] + [
    ("bytes_gpt", name) for name in ("hessian", "gradients", "taylor")
]


@pytest.mark.parametrize(("model", "name"), _CASES)
def test_plain_changes_no_figure(name: str, model: str) -> None:
    command, *options = COMMANDS[name]
    targets = [f"sample_models/{model}.toml"] * (2 if command == "compare" else 1)
    usual, plain = (
        without_rounding(answer_of((command, *targets, *_FEW, *options, *more)))
        for more in ((), ("--plain",))
    )
    assert usual["result"] is not None
    found = list(differences(usual, plain, "", 0.0, 1e-5, 1e-6, zero=1e-12))
    assert not found, "\n".join(found[:20])


def test_every_rewrite_says_why_it_is_there() -> None:
    assert len({rewrite.name for rewrite in REWRITES}) == len(REWRITES)
    assert all(rewrite.why and rewrite.functions for rewrite in REWRITES)
