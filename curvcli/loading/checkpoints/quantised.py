"""Numbers of eight bits and the scales that lie beside them."""

from torch import Tensor

from curvcli.errors import ModelError
from curvcli.loading.checkpoints.checkpoint import Checkpoint

# What is appended to a tensor's name for scales that it is multiplied by: DeepSeek's block scales, and those of
# compressed-tensors and of transformers' float8 layers.
_FACTORS = ("_scale_inv", "_scale")
# Scales whose direction the name does not tell.
_UNCLEAR = (".scale", "_scales", "_weight_scale", ".scales")


def scales_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Names of float8 tensors -> names of the scales that they are multiplied by.

    Raises:
        ModelError: there are scales of a kind that is not known.
    """
    names = {t.name for t in checkpoint.tensors}
    found: dict[str, str] = {}
    for name in (t.name for t in checkpoint.tensors if t.dtype.startswith("float8")):
        scale = next((name + end for end in _FACTORS if name + end in names), None)
        if scale is not None:
            found[name] = scale
            continue
        unclear = next((name + end for end in _UNCLEAR if name + end in names), None)
        if unclear is not None:
            raise ModelError(
                f"{name!r} is quantised to float8, and how its scales {unclear!r} are meant is not known",
                "dequantise the checkpoint and save it again",
            )
    return found


def dequantised(tensor: Tensor, scale: Tensor, name: str) -> Tensor:
    """weight · scale in float32, with one scale for all, for each row, or for each block.

    Raises:
        ModelError: the scale has no such shape.
    """
    weight, scale = tensor.float(), scale.float()
    if scale.numel() == 1:
        return weight * scale.reshape(())
    if scale.dim() == 1 and weight.dim() > 1 and len(scale) == len(weight):
        scale = scale.reshape(-1, *[1] * (weight.dim() - 1))
    sizes = [
        _block(length, blocks) for length, blocks in zip(weight.shape, scale.shape, strict=False)
    ]
    if scale.dim() != weight.dim() or 0 in sizes:
        raise ModelError(
            f"{name!r} has shape {list(weight.shape)} and scales of shape {list(scale.shape)}: neither one for all, "
            "nor one for each row or block",
            "dequantise the checkpoint and save it again",
        )
    for axis, size in enumerate(sizes):
        scale = scale.repeat_interleave(size, dim=axis).narrow(axis, 0, weight.shape[axis])
    return weight * scale


def _block(length: int, blocks: int) -> int:
    """Entries of a block along one axis: a power of two, where the last block may be cut off, or an equal share.

    >>> _block(256, 2), _block(300, 3), _block(30, 3), _block(30, 4), _block(30, 7)
    (128, 128, 10, 8, 0)
    """
    size = 1 << (-(-length // max(1, blocks)) - 1).bit_length()
    if -(-length // size) == blocks:
        return size
    return length // blocks if blocks and length % blocks == 0 else 0
