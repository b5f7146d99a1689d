"""Every console block of README and docs runs as it stands there, and says what is stable of it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.oracles.program import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
# Help texts are held against the program by `test_readme`; the changelog is included from outside.
NOT_READ = {"commands.md", "changelog.md"}
# Beginning of a command: why it does not run in a test.
ELSEWHERE = {
    "make ": "the workflow of tests and the release run the targets",
    "pip install": "installs from the network; `make wheel` does it with the wheel",
    "uv": "installs from the network",
    "torchrun --nproc-per-node 2 -m curvcli hessian sample_models/bytes_gpt.toml --device cuda": "needs two cards",
}
# Beginning of a command: what it says, whatever the machine; slow ones are run with `-m full`.
SAYS = {
    "curvcli init model.pt": ["model.toml is written", "accuracy 99.6%"],
    "curvcli gradients model.toml": ["Healthy: gradients reach all"],
    "curvcli gradients run.toml": ["Healthy: gradients reach all"],
    "curvcli gradients weights.safetensors": ["Healthy: gradients reach all"],
    "curvcli gradients gpt2/": ["Gradients reach all", "lm_head"],
    "curvcli hessian model.toml --data": ["Sharpest curvature", "every eigenvalue is in"],
    "curvcli hessian model.toml": ["Sharpest curvature", "every eigenvalue is in"],
    "curvcli hessian run.toml --strict": [],
    "curvcli hessian run.toml --ranks 4 --shard": ["Sharpest curvature", "every eigenvalue is in"],
    "curvcli hessian run.toml --format json | jq": ['"value"', '"residual"', '"converged": true'],
    "curvcli hessian weights.safetensors": ["Sharpest curvature", "every eigenvalue is in"],
    "curvcli hessian --model train.py:build": ["Sharpest curvature", "every eigenvalue is in"],
    "curvcli hessian gpt2/": ["Sharpest curvature", "every eigenvalue is in"],
    "curvcli info weights.safetensors": ["17,226 numbers in 6 tensors, all finite"],
    "curvcli compare run.toml": ["loss", "A", "B"],
    "curvcli track run.toml": ["Curvature over training", "step"],
    "torchrun": ["Sharpest curvature"],
}
SLOW = (
    "torchrun",
    "curvcli track",
    "curvcli compare",
    "curvcli hessian gpt2/",
    "curvcli hessian run.toml --strict",
    "curvcli hessian run.toml --ranks",
)
TRAIN = """
import sys
sys.path.insert(0, {samples!r})
import numpy as np, torch
from torch.nn.functional import cross_entropy
from models import DigitsMLP as Net
from safetensors.torch import load_file

def build():
    model = Net()
    model.load_state_dict(load_file("weights.safetensors"))
    return model

def loader():
    data = np.load("val.npz")
    return [(torch.from_numpy(data["x"]), torch.from_numpy(data["y"]))]

def loss(model, batch):
    x, y = batch
    return cross_entropy(model(x), y)
"""
PACKAGE = """
import sys
sys.path.insert(0, {samples!r})
from models import DigitsMLP

def Net(width=128):
    assert width == 128
    return DigitsMLP()
"""


def commands() -> list[str]:
    """All of them, each once."""
    found = []
    for page in PAGES:
        if page.name in NOT_READ:
            continue
        for block in re.findall(r"```console\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            text = re.sub(r"\\\n\s*", " ", block)
            found += [re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines()]
    return [line for line in dict.fromkeys(found) if line and not line.startswith("#")]


def entry(line: str, table: dict[str, list[str]] | dict[str, str]) -> str | None:
    """The longest beginning that the table knows."""
    known = [start for start in table if line.startswith(start)]
    return max(known, key=len, default=None)


RUN = [line for line in commands() if entry(line, ELSEWHERE) is None]


def test_the_docs_have_commands_and_each_is_known() -> None:
    """None is left out silently, and no entry is of a command that is gone."""
    assert len(RUN) > 10
    assert [line for line in RUN if entry(line, SAYS) is None] == []
    assert {entry(line, SAYS) for line in RUN} == {*SAYS}
    assert {entry(line, ELSEWHERE) for line in commands()} - {None} == {*ELSEWHERE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as the pages speak of it: a small network, and data in several forms."""
    place = tmp_path_factory.mktemp("project")
    samples = str(ROOT / "sample_models")
    weights = load_file(f"{samples}/digits_mlp.safetensors")
    save_file(weights, place / "weights.safetensors")
    torch.save(weights, place / "model.pt")
    torch.manual_seed(0)
    moved = {k: v + 0.01 * torch.randn(v.shape) for k, v in weights.items()}
    save_file(moved, place / "other.safetensors")
    (place / "checkpoints").mkdir()
    for step, state in ((100, moved), (200, weights)):
        save_file(state, place / "checkpoints" / f"step_{step}.safetensors")
    data = dict(np.load(f"{samples}/digits.npz"))
    for name in ("digits.npz", "val.npz"):
        np.savez(place / name, **data)
    head = ",".join([*(f"pixel{i}" for i in range(data["x"].shape[1])), "digit"])
    np.savetxt(
        place / "measurements.csv", np.column_stack([data["x"], data["y"]]), "%.6g", ",", header=head, comments="",
    )  # fmt: skip
    (place / "train.py").write_text(TRAIN.format(samples=samples))
    (place / "package").mkdir()
    (place / "package" / "__init__.py").write_text("")
    (place / "package" / "models.py").write_text(PACKAGE.format(samples=samples))
    settings = 'model = "train.py:Net"\ndata = "val.npz"\nloss = "cross_entropy"\nmax-batches = 1\n'
    (place / "run.toml").write_text('checkpoint = "weights.safetensors"\n' + settings)
    for name, module in (("curvcli", "curvcli"), ("torchrun", "torch.distributed.run")):
        shim = place / "bin" / name
        shim.parent.mkdir(exist_ok=True)
        shim.write_text(
            f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m {module} "$@"\n'
        )
        shim.chmod(0o755)
    return place


def language_model(place: Path) -> None:
    """A tiny GPT-2 with a tokenizer, and text."""
    tf = pytest.importorskip("transformers", reason="transformers is not installed")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    text = (ROOT / "sample_models" / "text.txt").read_text("utf-8")
    (place / "corpus.txt").write_text(text, "utf-8")
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<unk>", "</s>"]
    made.train_from_iterator([text], trainers.BpeTrainer(vocab_size=300, special_tokens=special))
    words = tf.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")
    words.save_pretrained(place / "gpt2")
    config = tf.GPT2Config(
        vocab_size=len(words),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    tf.GPT2LMHeadModel(config).save_pretrained(place / "gpt2")


@pytest.mark.parametrize(
    "line",
    [pytest.param(one, marks=[pytest.mark.full] if one.startswith(SLOW) else []) for one in RUN],
)
def test_a_command_of_the_docs_runs_and_says_what_is_stable(line: str, folder: Path) -> None:
    if "jq" in line.split() and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    if "gpt2/" in line and not (folder / "gpt2").exists():
        language_model(folder)
    if "model.toml" in line and not (folder / "model.toml").exists():
        (folder / "model.toml").write_text((folder / "run.toml").read_text())
    environment = {
        **os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "COLUMNS": "100",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }  # fmt: skip
    if line.startswith("curvcli init"):
        (folder / "model.toml").unlink(missing_ok=True)
    bash = ["bash", "-eo", "pipefail", "-c", line]
    done = subprocess.run(
        bash, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    start = entry(line, SAYS)
    assert start is not None
    for words in SAYS[start]:
        assert words in done.stdout + done.stderr, (words, done.stdout)
    if " -o " in line:
        written = folder / line.split(" -o ")[1].split(maxsplit=1)[0]
        assert "Sharpest curvature" in written.read_text("utf-8")
