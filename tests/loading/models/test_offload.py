"""With --offload DIR a CPU computes with weights in a file: the same answer, and no file is left."""

from pathlib import Path

import pytest
import torch

from curvcli.analyses.registry import NAMES
from curvcli.analyses.shared.settings import resolve_target
from curvcli.analyses.shared.subject import Subject
from tests.conftest import SAMPLES


@pytest.mark.parametrize("place", ["folder", "host", None])
def test_weights_lie_in_the_file(place: str | None, tmp_path: Path) -> None:
    folder = str(tmp_path) if place == "folder" else place
    given = {"offload": folder} if folder else {}
    spec, tables = resolve_target(str(SAMPLES / "digits_mlp.toml"), given, NAMES)
    subject = Subject(spec, tables=tables)
    parameters = subject.objective.parameters
    mapped = [_mapped(p.detach()) for p in parameters]
    assert mapped == [place == "folder"] * len(parameters)
    assert list(tmp_path.iterdir()) == []
    plain, _ = resolve_target(str(SAMPLES / "digits_mlp.toml"), {}, NAMES)
    expected = Subject(plain).objective
    assert subject.objective.loss == expected.loss
    assert torch.equal(subject.objective.gradient(), expected.gradient())


def _mapped(tensor: torch.Tensor) -> bool:
    """Whether a nameless file lies behind the memory of a tensor."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("(deleted)"):
            first, last = (int(end, 16) for end in line.split()[0].split("-"))
            if first <= tensor.data_ptr() < last:
                return True
    return False
