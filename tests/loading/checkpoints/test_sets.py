"""Checkpoints as they lie about: the weights are found by key, prefix, names and shapes, or refused with the choice."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from curvcli.errors import CheckpointError, CurvError, ModelError
from curvcli.loading.checkpoints.formats import open_checkpoint
from curvcli.loading.models.model import load_weights


def network() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()


X = torch.linspace(-1, 1, 20).view(5, 4)
TRUTH = network()(X)
WEIGHTS = network().state_dict()
OTHER = {n: t + 1 for n, t in WEIGHTS.items()}


def loaded(path: Path, weights: str | None = None, into: nn.Module | None = None) -> nn.Module:
    """Another network, with the weights of a file."""
    model = network() if into is None else into
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    load_weights(model, open_checkpoint(path, weights=weights))
    return model


def under(prefix: str, tensors: dict[str, Tensor] = WEIGHTS) -> dict[str, Tensor]:
    return {prefix + n: t.clone() for n, t in tensors.items()}


def inside(wrapper: str) -> dict[str, Tensor]:
    """A wrapper around each layer: its name comes before the last part."""
    return {
        f"{n.rpartition('.')[0]}.{wrapper}{n.rpartition('.')[2]}": t for n, t in WEIGHTS.items()
    }


@pytest.mark.parametrize(
    "content",
    [
        inside("_orig_mod."),
        inside("_fsdp_wrapped_module."),
        inside("_fsdp_wrapped_module._checkpoint_wrapped_module."),
        inside("module."),
        under("_fsdp_wrapped_module.", inside("_orig_mod.")),
        under("net."),
        under("features.module."),
        {**under("generator."), "discriminator.weight": torch.ones(2)},
        {**under("student.net."), **under("loss.", {"0.weight": torch.ones(7)})},
        torch.optim.swa_utils.AveragedModel(network()).state_dict(),
        {"iteration": torch.tensor(3), "netG": WEIGHTS},
        {"who_knows": {"inner": WEIGHTS}, "optimizer": {"state": {}, "param_groups": []}},
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_under_any_name(content: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    """The loaded network computes what the saved one did."""
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save(content, path)
    elif all(isinstance(t, Tensor) for t in content.values()):
        save_file(content, path)
    else:
        pytest.skip("safetensors hold no nested mappings")
    assert torch.equal(loaded(path)(X), TRUTH)


SETS: dict[str, Any] = {
    "model": OTHER, "ema": WEIGHTS, "step": 3, "optimizer": {"state": {0: {"m": X}}, "param_groups": []},
}  # fmt: skip
PAIR: dict[str, Any] = {"netG": WEIGHTS, "netD": {"weight": torch.ones(2, 2)}}
CYCLE = {**under("G_A."), **under("G_B.", OTHER)}


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (SETS, "ema"), (PAIR, "netG"), (CYCLE, "G_A"), ({"state_dict": CYCLE}, "G_A"),
        ({"state_dict": CYCLE}, "state_dict.G_A"), ({"state_dict": under("a.b.")}, "a.b"),
    ],
)  # fmt: skip
def test_one_of_several_sets_is_chosen_by_its_key(
    content: dict[str, Any], key: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert torch.equal(loaded(tmp_path / "w.pt", key)(X), TRUTH)


def test_the_other_sets_are_named(tmp_path: Path) -> None:
    torch.save(SETS, tmp_path / "w.pt")
    (note,) = open_checkpoint(tmp_path / "w.pt").notes
    assert "'model'" in note
    assert "--weights takes another: 'ema'" in note


@pytest.mark.parametrize(
    ("content", "key", "words"),
    [
        (PAIR, None, "several sets of weights: 'netG', 'netD'"),
        (SETS, "emma", "no weights under 'emma'. Did you mean 'ema'"),
        (SETS, "optimizer", "no weights under 'optimizer'"),
        (CYCLE, None, "2 parts fit by names and shapes: 'G_A', 'G_B'"),
        ({"a": {"G": WEIGHTS}, "b": {"G": WEIGHTS}}, "G", "in 2 places: 'a.G', 'b.G'"),
    ],
)
def test_what_cannot_be_told_is_refused_with_the_candidates(
    content: dict[str, Any], key: str | None, words: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CurvError, match=words):
        loaded(tmp_path / "w.pt", key)


def test_a_prefix_of_the_model_that_the_file_lacks(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "w.pt")
    into = nn.ModuleDict({"net": network()})
    loaded(tmp_path / "w.pt", into=into)
    assert torch.equal(into["net"](X), TRUTH)
    with pytest.raises(ModelError, match="no tensor of the checkpoint fits"):
        loaded(tmp_path / "w.pt", into=nn.ModuleDict({"a": network(), "b": network()}))


def test_weights_of_another_network_are_not_taken_in_part(tmp_path: Path) -> None:
    """A suffix that fits by chance is no prefix found."""
    torch.save(under("body.", {k: WEIGHTS[k] for k in ("0.weight", "0.bias")}), tmp_path / "w.pt")
    with pytest.raises(ModelError, match="no tensor of the checkpoint fits"):
        loaded(tmp_path / "w.pt")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 3), nn.Linear(3, 6, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("kept", ["embed.weight", "head.weight", "lm.head.weight"])
def test_tied_weights_that_are_stored_once(kept: str, tmp_path: Path) -> None:
    values = torch.randn(6, 3)
    save_file({kept: values}, tmp_path / "w.safetensors")
    model = Tied()
    load_weights(model, open_checkpoint(tmp_path / "w.safetensors"))
    assert torch.equal(model.embed.weight, values)
    assert model.head.weight is model.embed.weight


def test_tied_weights_that_are_stored_as_two_are_refused(tmp_path: Path) -> None:
    """Whichever came last would be a network that nobody trained."""
    save_file(
        {"embed.weight": torch.ones(6, 3), "head.weight": torch.zeros(6, 3)},
        tmp_path / "w.safetensors",
    )
    with pytest.raises(ModelError, match=r"'embed\.weight' and 'head\.weight' are one tensor"):
        load_weights(Tied(), open_checkpoint(tmp_path / "w.safetensors"))


def test_an_index_of_pytorch_shards(tmp_path: Path) -> None:
    names = list(WEIGHTS)
    shards = {"a.bin": names[:3], "b.bin": names[3:]}
    for shard, part in shards.items():
        torch.save({n: WEIGHTS[n] for n in part}, tmp_path / shard)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {n: s for s, part in shards.items() for n in part}}))
    assert torch.equal(loaded(index)(X), TRUTH)
    assert torch.equal(loaded(tmp_path)(X), TRUTH)
    before = open_checkpoint(index).sha256()
    torch.save({n: WEIGHTS[n] + 1 for n in shards["b.bin"]}, tmp_path / "b.bin")
    assert open_checkpoint(index).sha256() != before
    (tmp_path / "b.bin").unlink()
    with pytest.raises(CheckpointError, match="no shard"):
        open_checkpoint(index)


@pytest.mark.parametrize("place", [Path(), Path("global_step10")])
def test_shards_of_zero_name_their_own_converter(place: Path, tmp_path: Path) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    torch.save({}, tmp_path / place / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(CheckpointError, match="ZeRO") as caught:
        open_checkpoint(tmp_path)
    assert "zero_to_fp32.py" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (None, "needs the Python package 'gone_package', which is not installed"),
        (types.ModuleType("gone_package"), "Python code that is not here.*Net"),
    ],
)
def test_code_that_a_trusted_pickle_misses_is_named(
    left: types.ModuleType | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not called damaged."""
    package = types.ModuleType("gone_package")
    kind = type("Net", (), {"__module__": "gone_package"})
    package.Net = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gone_package", package)
    torch.save(kind(), tmp_path / "w.pt")
    if left is None:
        monkeypatch.delitem(sys.modules, "gone_package")
    else:
        monkeypatch.setitem(sys.modules, "gone_package", left)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(tmp_path / "w.pt", unsafe_pickle=True)
