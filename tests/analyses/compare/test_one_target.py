"""`compare` of one target with itself: other weights in the file, other data, single classes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracles.program import answer, invoke

QUICK = ("--analysis", "gradients", "--subspace", "0", "--points", "3")


def drawn(seed: int, samples: int = 200, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Three classes around fixed centres; the noise is the seed's."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 3
    centres = torch.randn(3, 4, generator=torch.Generator().manual_seed(99))
    return scale * (centres[y] + torch.randn(samples, 4, generator=generator)), y


@pytest.fixture
def project(tmp_path: Path) -> tuple[Path, nn.Linear]:
    """A classifier in a file with its average beside it, and two sets of data of one distribution."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    x, y = drawn(0)
    for _ in range(30):
        loss = F.cross_entropy(model(x), y)
        for p, g in zip(
            model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            p.data -= 0.3 * g
    state = model.state_dict()
    saved = {"model": state, "ema": {k: 0.2 * v for k, v in state.items()}}
    torch.save(saved, tmp_path / "w.pt")
    (tmp_path / "net.py").write_text(
        "import torch\n\ndef build():\n    return torch.nn.Linear(4, 3)\n"
    )
    for name, (features, labels) in {"a": (x, y), "b": drawn(1), "far": drawn(2, scale=3)}.items():
        torch.save({"x": features, "y": labels}, tmp_path / f"{name}.pt")
    (tmp_path / "run.toml").write_text(
        'checkpoint = "w.pt"\nmodel = "net.py:build"\ndata = "a.pt"\nloss = "cross_entropy"\n'
    )
    return tmp_path, model


def compared(folder: Path, *flags: str) -> dict[str, Any]:
    code, found = answer("compare", str(folder / "run.toml"), *flags)
    assert code == 0, found["error"]
    result: dict[str, Any] = found["result"]
    return result


def test_an_average_in_the_same_file_is_compared_in_one_command(
    project: tuple[Path, nn.Linear],
) -> None:
    """--weights ema: A are the usual weights, B the average; the difference is that of the two losses by hand."""
    folder, model = project
    x, y = drawn(0)
    result = compared(folder, "--weights", "ema", *QUICK)
    logits = model(x).detach()
    by_hand = float(F.cross_entropy(0.2 * logits, y) - F.cross_entropy(logits, y))
    # Two losses near one another in float32, some 1e-7 of each.
    assert result["paired"]["difference"] == pytest.approx(by_hand, rel=1e-5)
    assert result["paired"]["better"] == "a"
    assert "two targets are compared, not 1" in invoke("compare", str(folder / "run.toml")).stderr


def test_data_of_one_distribution_differ_within_sampling(project: tuple[Path, nn.Linear]) -> None:
    """Loss by hand with its error; loss and gradient of other noise are within sampling, of other scale beyond."""
    folder, model = project
    same = compared(folder, "--other-data", str(folder / "b.pt"), *QUICK)
    assert same["identical"]
    assert same["paired"] is None
    losses = [
        F.cross_entropy(model(x), y, reduction="none").detach() for x, y in (drawn(0), drawn(1))
    ]
    found = same["sampling"]["loss"]
    assert found["difference"] == pytest.approx(
        float(losses[1].mean() - losses[0].mean()), abs=1e-5
    )
    error = float(sum(part.var() / len(part) for part in losses)) ** 0.5
    # 50 pieces of four samples: their variance is known to a fifth, a standard error to a tenth; three of these.
    assert found["standard_error"] == pytest.approx(error, rel=0.3)
    assert (found["beyond"], same["sampling"]["gradient"]["beyond"]) == (False, False)
    far = compared(folder, "--other-data", str(folder / "far.pt"), *QUICK)["sampling"]
    assert far["gradient"]["beyond"]


def test_curvature_on_other_data_has_its_error(project: tuple[Path, nn.Linear]) -> None:
    """λ_max on both, subtracted, with the errors over batches; the sentence says what is beyond sampling."""
    folder, _ = project
    flags = ("--other-data", str(folder / "far.pt"), "--batch-size", "40", "--points", "3")
    sharp = compared(folder, *flags)["sampling"]["lambda_max"]
    assert sharp["standard_error"] > 0
    shown = " ".join(invoke("compare", str(folder / "run.toml"), *flags).stdout.split())
    assert "The same weights on other data: B differs from A in loss by" in shown


def test_single_classes_add_up(project: tuple[Path, nn.Linear]) -> None:
    """Losses of the classes by hand; λ_max of a class against the dense Hessian of a linear softmax."""
    folder, model = project
    rows = compared(folder, "--weights", "ema", "--per-class", *QUICK)["classes"]
    x, y = drawn(0)
    each = F.cross_entropy(model(x), y, reduction="none").detach()
    for row in rows:
        mine = y == row["number"]
        assert row["samples"] == int(mine.sum())
        assert row["loss_a"] == pytest.approx(float(each[mine].mean()), rel=1e-4)
        p = model(x[mine]).softmax(1).detach().double()
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        z = torch.cat([x[mine], torch.ones(len(p), 1)], 1).double()
        dense = torch.einsum("nij,na,nb->iajb", inner, z, z).reshape(15, 15) / len(p)
        assert row["lambda_max_a"] == pytest.approx(
            float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-2
        )


def test_it_is_said_what_a_and_b_are(project: tuple[Path, nn.Linear]) -> None:
    """The names as they were given, above the figures; of other weights or data, which."""
    place, _ = project
    sides = answer("compare", f"{place}/run.toml", "--weights", "ema", *QUICK)[1]["result"]["names"]
    assert sides == [f"{place}/run.toml", f"{place}/run.toml (ema)"]
    shown = invoke("compare", f"{place}/run.toml", "--weights", "ema", *QUICK).stdout
    flat = " ".join(shown.split())
    assert f"A: {place}/run.toml. Loss" in flat
    assert f"B: {place}/run.toml (ema). Loss" in flat
    assert flat.index("B: ") < flat.index("figure ")
