"""Products are in full float32 whatever an imported module asks for, and what it asked for is restored."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, backends, nn

from curvcli.analyses.shared.subject import Subject
from curvcli.api import analyse
from curvcli.loading.spec import TargetSpec
from curvcli.machine.precision import restored_precision, set_precision, without_cudnn
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective

_PER_OPERATOR = pytest.mark.skipif(
    not hasattr(backends.cudnn, "conv"), reason="settings by operator came with torch 2.9"
)


def legacy() -> None:
    torch.set_float32_matmul_precision("medium")
    backends.cudnn.allow_tf32 = True


def by_operator() -> None:
    backends.cuda.matmul.fp32_precision = "tf32"
    backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]


def seen() -> tuple[object, ...]:
    """What CUDA would compute with."""
    if not hasattr(backends.cudnn, "conv"):
        return backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    return backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision


FULL = (False, False) if not hasattr(backends.cudnn, "conv") else ("ieee", "ieee")
USERS = [legacy, pytest.param(by_operator, marks=_PER_OPERATOR)]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with restored_precision():
        yield


@pytest.mark.parametrize("users", USERS)
def test_what_is_set_is_what_operators_see_and_then_what_the_program_had(
    users: Callable[[], None],
) -> None:
    users()
    before = seen()
    with restored_precision():
        set_precision(tf32=False)
        assert seen() == FULL
        # Torch refuses to answer where the flags of its generations contradict each other.
        assert torch.get_float32_matmul_precision() == "highest"
        assert not backends.cudnn.allow_tf32
        set_precision(tf32=True)
        assert seen() != FULL
    assert seen() == before


@pytest.mark.parametrize("users", USERS)
def test_an_objective_made_in_python_is_in_full_precision(users: Callable[[], None]) -> None:
    """The analyses restore what the program had."""
    users()
    before = seen()
    during = []

    def terms(model: nn.Module, data: Tensor) -> tuple[Tensor, float]:
        during.append(seen())
        return model(data).square().sum(), float(len(data))

    with restored_precision():
        objective = make_objective(nn.Linear(3, 2), [Batch(torch.randn(4, 3), 4)], terms)
    analyse("hessian", Subject(objective=objective), top=1, bottom=1)
    assert set(during) == {FULL}
    assert seen() == before


def test_the_settings_of_an_imported_module_do_not_win(tmp_path: Path) -> None:
    """The modules of model and data are imported before the objective is made, and `jacobian` makes none."""
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\n"
        "from tests.machine.test_precision import legacy, seen\n"
        "during = set()\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.layer = nn.Linear(3, 2)\n        legacy()\n"
        "    def forward(self, x):\n        during.add(seen())\n        return self.layer(x)\n"
        "def data():\n    legacy()\n    return torch.randn(4, 3), torch.tensor([0, 1, 0, 1])\n"
    )
    import sys

    spec = TargetSpec(
        model=f"{tmp_path}/own.py:Net", data=f"{tmp_path}/own.py:data", loss="cross_entropy"
    )
    for question in ("gradients", "jacobian"):
        analyse(question, Subject(spec))
    found = [
        m for m in sys.modules.values() if getattr(m, "__file__", "") == str(tmp_path / "own.py")
    ]
    assert [m.during for m in found] == [{FULL}]


def test_switching_cudnn_off_switches_nothing_else() -> None:
    """The flags() of torch would allow TF32."""
    set_precision(tf32=False)
    with without_cudnn():
        assert not backends.cudnn.enabled
        assert seen() == FULL
    assert backends.cudnn.enabled
