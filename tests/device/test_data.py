"""Batches that a loader yields on the device are frozen on the host, hashed there, and moved once."""

from pathlib import Path

import torch

from curvcli.analyses.shared.subject import Subject
from curvcli.loading.spec import TargetSpec
from tests.oracles.program import ROOT


def test_a_loader_may_yield_tensors_of_the_device(tmp_path: Path, device: torch.device) -> None:
    (tmp_path / "data.py").write_text(
        "import torch\n"
        "def load(device):\n"
        "    torch.manual_seed(0)\n"
        "    return [(torch.randn(4, 64).to(device), torch.arange(4).to(device))]\n"
        f"def here():\n    return load('cpu')\ndef there():\n    return load({str(device)!r})\n"
    )
    models = ROOT / "sample_models"
    found = []
    for where, name in (("cpu", "here"), (str(device), "there"), ("cpu", "there")):
        spec = TargetSpec(
            checkpoint=str(models / "digits_mlp.safetensors"), model=f"{models}/models.py:DigitsMLP",
            data=f"{tmp_path}/data.py:{name}", loss="cross_entropy", device=where,
        )  # fmt: skip
        subject = Subject(spec)
        objective = subject.objective
        assert objective.batches[0].data[0][0].device.type == torch.device(where).type
        found.append((subject.target.data_sha256, round(objective.loss, 5)))
    assert found[0] == found[1] == found[2]
