"""Weight normalisation in its two forms: a checkpoint of one is loaded into a model of the other, exactly."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations

from curvcli.errors import ModelError
from curvcli.loading.checkpoints.formats import open_checkpoint
from curvcli.loading.models.model import load_weights
from curvcli.loading.models.weight_norm import weight_norm_names

Normalise = Callable[..., nn.Module]


def old(module: nn.Module, name: str = "weight", dim: Any = 0) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and in many checkpoints
        return nn.utils.weight_norm(module, name, dim)


def new(module: nn.Module, name: str = "weight", dim: Any = 0) -> nn.Module:
    found: nn.Module = parametrizations.weight_norm(module, name, dim)
    return found


def network(normalise: Normalise, seed: int) -> nn.Sequential:
    """Norms by row, of a transposed convolution by column, over everything; a recurrent weight; one layer without."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        normalise(nn.Conv1d(2, 4, 3)), nn.Tanh(), normalise(nn.ConvTranspose1d(4, 3, 2), dim=1), nn.Flatten(),
        normalise(nn.Linear(21, 5), dim=None), nn.Linear(5, 2), normalise(nn.RNN(2, 3), "weight_hh_l0"),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("prefix", ["", "module.", "generator."])
@pytest.mark.parametrize(("stored", "wanted"), [(old, new), (new, old), (old, old), (new, new)])
def test_both_forms_are_the_same_function(
    stored: Normalise, wanted: Normalise, prefix: str, tmp_path: Path
) -> None:
    """Outputs are equal to the last bit: g and v are copied, and w = g v / ‖v‖ is computed by the model's own form."""
    source, target = network(stored, 0), network(wanted, 1)
    x = torch.randn(3, 2, 8)
    state = {prefix + n: t.detach().clone() for n, t in source.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    notes = load_weights(target, open_checkpoint(tmp_path / "w.safetensors"))

    def outputs(model: nn.Sequential) -> tuple[Any, Any]:
        y = model[:-1](x)
        return y, model[-1](y)[0]

    for a, b in zip(outputs(source), outputs(target), strict=True):
        # Both forms call the same kernel; the bound is that of a product of three in float32.
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert any("weight_norm" in note for note in notes) == (stored is not wanted)


def test_half_of_a_pair_is_missing_as_ever(tmp_path: Path) -> None:
    state = {n: t.detach() for n, t in old(nn.Linear(3, 2)).state_dict().items()}
    state.pop("weight_v")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"missing \('parametrizations.weight.original0'"):
        load_weights(new(nn.Linear(3, 2)), open_checkpoint(tmp_path / "w.safetensors"))


def test_other_tensors_of_such_names_are_left_alone() -> None:
    """Spectral normalisation of old has a ``weight_v`` without a ``weight_g``; a model may have such names itself."""
    spectral = ["weight_orig", "weight_u", "weight_v", "bias"]
    assert not weight_norm_names(spectral, ["parametrizations.weight.original", "bias"])
    own = ["proj_g", "proj_v"]
    assert not weight_norm_names(own, [*own, "0.parametrizations.weight.original0"])
