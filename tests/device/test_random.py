"""What is drawn is drawn by the seed, and the same on every device."""

from pathlib import Path

import pytest
import torch

from curvcli.analyses.gradients.reinit import reinitialised
from curvcli.analyses.shared.subject import Subject
from curvcli.loading.spec import TargetSpec
from tests.oracles.program import ROOT


@pytest.mark.parametrize("scheme", ["default", "xavier", "orthogonal"])
@pytest.mark.parametrize("name", ["digits_lstm", "bytes_gpt"])
def test_fresh_weights_are_the_same_on_every_device(
    name: str, scheme: str, device: torch.device
) -> None:
    """PyTorch's own initialisation draws on the device of the weights, by that device's generator."""
    found = []
    for where in ("cpu", str(device)):
        subject = Subject(_spec(ROOT / "sample_models", name, where))
        model = subject.objective.model
        before = [p.detach().clone() for p in model.parameters()]
        with reinitialised(subject.objective, scheme, 3):
            found.append([p.detach().cpu().clone() for p in model.parameters()])
        assert all(map(torch.equal, before, model.parameters()))
    assert all(map(torch.equal, *found))
    assert not all(map(torch.equal, found[0], (p.cpu() for p in before)))


def _spec(folder: Path, name: str, device: str) -> TargetSpec:
    model, data = {
        "digits_lstm": ("DigitsLSTM", "digits.npz"), "bytes_gpt": ("BytesGPT", "text.npz"),
    }[name]  # fmt: skip
    return TargetSpec(
        checkpoint=str(folder / f"{name}.safetensors"), model=f"{folder}/models.py:{model}",
        data=str(folder / data), loss="cross_entropy", device=device, batch_size=2, max_batches=1,
    )  # fmt: skip
