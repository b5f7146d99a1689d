"""All that is missing is said at once, with a command that has it, before torch is imported."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import ones

from curvcli.analyses.shared.missing import check_complete
from curvcli.errors import CurvError, DataError, LossError, ModelError
from curvcli.loading.spec import TargetSpec

WHOLE = ("model", "data", "loss")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint, a network that would fail if it were run, and data."""
    save_file({"weight": ones(2, 2)}, tmp_path / "w.safetensors")
    (tmp_path / "mine.py").write_text(
        "raise SystemExit\nimport torch.nn as nn\nclass Deep(nn.Module):\n    pass\n"
    )
    (tmp_path / "digits.npz").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_everything_is_named_in_one_sentence_with_an_example(place: Path) -> None:
    """The example names this checkpoint, the network and the data that lie here."""
    spec = TargetSpec(checkpoint="w.safetensors")
    with pytest.raises(ModelError) as caught:
        check_complete("hessian", spec, needed=WHOLE, series=False)
    assert caught.value.message == (
        "a checkpoint holds weights, not the network they belong to; no data is given; no loss is given"
    )
    assert caught.value.hint == (
        "for example: curvcli hessian w.safetensors --model mine.py:Deep --data digits.npz --loss cross_entropy"
    )


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"model": "mine.py:Deep"}, DataError),
        ({"model": "mine.py:Deep", "data": "digits.npz"}, LossError),
        ({"data": "digits.npz", "loss": "mse"}, ModelError),
    ],
)
def test_what_is_given_stays_in_the_example(
    place: Path, given: dict[str, str], kind: type[CurvError]
) -> None:
    spec = TargetSpec(checkpoint="w.safetensors", **given)  # type: ignore[arg-type]
    with pytest.raises(kind) as caught:
        check_complete("saddle", spec, needed=WHOLE, series=False)
    for flag, value in given.items():
        assert f"--{flag} {value}" in str(caught.value.hint)


def test_nothing_is_missing(place: Path) -> None:
    """Nor is a loss where none is needed; a series is told that its target file goes first."""
    whole = TargetSpec(checkpoint="w.safetensors", model="mine.py:Deep", data="digits.npz")
    check_complete("jacobian", whole, needed=WHOLE[:2], series=False)
    with pytest.raises(CurvError) as caught:
        check_complete("track", TargetSpec(checkpoint="w.safetensors"), needed=WHOLE, series=True)
    assert "a target file with model, data and loss goes first" in str(caught.value.hint)


def test_torch_is_not_imported(place: Path) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom curvcli.cli.main import make_app\n"
        "done = CliRunner().invoke(make_app(), ['hessian', 'w.safetensors'])\n"
        "assert done.exit_code == 2 and 'no data is given' in done.stderr, done.output\n"
        "assert 'torch' not in sys.modules\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{code}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
