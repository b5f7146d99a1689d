"""Every answer from data begins with loss and accuracy beside those of a constant predictor."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from curvcli import load
from tests.oracles.program import ROOT, answer, invoke

TARGET = str(ROOT / "sample_models" / "digits_mlp.toml")
QUICK = ("--top", "1", "--bottom", "0")


def by_hand() -> tuple[float, float, float, float]:
    """Loss, accuracy, entropy of the classes and the largest share, from the files themselves."""
    with np.load(ROOT / "sample_models" / "digits.npz") as archive:
        data = {k: torch.from_numpy(archive[k]) for k in ("x", "y")}
    w = {k: t.double() for k, t in load_file(TARGET.replace(".toml", ".safetensors")).items()}
    h = data["x"].double()
    for name in ("fc1", "fc2"):
        h = F.gelu(h @ w[f"{name}.weight"].T + w[f"{name}.bias"])
    logits, y = h @ w["out.weight"].T + w["out.bias"], data["y"].long()
    shares = np.bincount(y.numpy(), minlength=10) / len(y)
    entropy = -sum(p * math.log(p) for p in shares if p)
    right = float((logits.argmax(1) == y).double().mean())
    return float(F.cross_entropy(logits, y)), right, entropy, float(shares.max())


def test_the_head_has_the_figures_of_the_files() -> None:
    """JSON and table of `hessian`; weight decay is no part of the loss that is held against a constant."""
    loss, accuracy, chance, majority = by_hand()
    _, found = answer("hessian", TARGET, *QUICK, "--weight-decay", "0.1")
    fit = found["target"]["fit"]
    assert fit["loss"] == pytest.approx(loss, rel=1e-4)  # float32 logits against double ones
    assert found["result"]["loss"] > fit["loss"]
    assert fit["accuracy"] == pytest.approx(accuracy)
    assert fit["chance"] == pytest.approx(chance)
    assert fit["majority"] == pytest.approx(majority)
    assert not fit["at_chance"]
    headline, body = invoke("hessian", TARGET, *QUICK).stdout.split("\n\n", 1)
    assert headline.startswith("✓ Sharpest curvature λ")
    assert body.startswith(f"Loss {loss:.4g}, accuracy {accuracy:.1%}")


def test_a_network_at_chance_is_said_before_its_curvature() -> None:
    """Fresh weights: the first lines say that what follows is of a network that has not learned."""
    sample = str(ROOT / "sample_models" / "vanishing_sigmoid.toml")
    shown = " ".join(invoke("taylor", sample).stdout.split())
    assert "No better than a constant" in shown.split("λ max")[0]


def test_few_samples_at_a_time_give_the_same_figures() -> None:
    """A limit of memory makes the pass go in pieces."""
    whole, pieces = (s.forward_pass() for s in (load(TARGET), load(TARGET, memory="2GB")))
    assert pieces.output_spread == pytest.approx(whole.output_spread, rel=1e-5)
    assert (pieces.chance, pieces.accuracy) == (whole.chance, whole.accuracy)


def test_an_answer_stands_without_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass for the head is an instrument of ours: where it fails, a note names it."""

    def fails(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("curvcli.analyses.shared.forward_pass.forward_pass", fails)
    code, found = answer("hessian", TARGET, *QUICK)
    assert code in (0, 3)
    assert found["result"]["top"]
    assert found["target"]["fit"] is None
    assert any("no such kernel" in note for note in found["notes"])
