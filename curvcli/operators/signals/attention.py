"""How far each attention head spreads: the entropy of its weights, also where a fused kernel hides them.

Shapes: ``B`` samples, ``H`` heads, ``L`` queries, ``S`` keys, ``E`` features of a head.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Samples that the weights are recomputed for; the mean over heads' queries needs no more.
SAMPLES = 8
# Entries of the weights that exist at once.
_ENTRIES = 1 << 22
# A score below this is a mask: -inf, -1e9, the lowest float16.
_MASKED = -9e3


def head_entropy(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Entropy of softmax(QKᵀ·scale + mask) by head over the log of the number of keys it may see.

    Takes the arguments of ``F.scaled_dot_product_attention``; recomputed for at most eight samples, in
    blocks, so that the weights of a long sequence never exist at once.

    Returns:
        Shape (H,): the mean over samples and queries that see at least two keys; 1 is uniform, 0 a single
        key. NaN where no query sees two.
    """
    with torch.no_grad():
        query, key = (t.detach() if t.dim() > 3 else t.detach().unsqueeze(-3) for t in (query, key))
        query_BHLE = query.reshape(-1, *query.shape[-3:])
        key_BHSE = key.reshape(-1, *key.shape[-3:])
        b, h, queries, features = query_BHLE.shape
        keys = key_BHSE.shape[-2]
        if key_BHSE.shape[1] != h:
            key_BHSE = key_BHSE.repeat_interleave(h // key_BHSE.shape[1], 1)
        factor = features**-0.5 if scale is None else scale
        mask = _mask(attn_mask, b, h, queries, keys)
        rows = max(1, _ENTRIES // max(1, h * keys))
        sums_H, counts_H = query.new_zeros(2, h, dtype=torch.float32)
        for sample in _spread(b):
            for first in range(0, queries, rows):
                part = slice(first, min(first + rows, queries))
                rows_L = torch.arange(part.start, part.stop, device=query.device)
                scores_HLS = query_BHLE[sample, :, part] @ key_BHSE[sample].mT * factor
                scores_HLS = scores_HLS.float()
                if mask is not None:
                    block = mask[sample, :, part]
                    if block.dtype == torch.bool:
                        scores_HLS = scores_HLS.masked_fill(~block, -torch.inf)
                    else:
                        scores_HLS = scores_HLS + block
                if is_causal:
                    later = torch.arange(keys, device=query.device) > rows_L[:, None]
                    scores_HLS = scores_HLS.masked_fill(later, -torch.inf)
                if mask is not None:
                    seen_HL = (scores_HLS > _MASKED).sum(-1)
                else:
                    seen_HL = (rows_L + 1 if is_causal else rows_L.new_full((1,), keys)).clamp_max(
                        keys
                    )
                _accumulate(scores_HLS.softmax(-1), seen_HL, sums_H, counts_H)
        share_H: Tensor = sums_H / counts_H
        return share_H


def entropy_of_scores(scores_BHLS: Tensor) -> Tensor:
    """The same for a softmax over explicit scores, shape (B, H, L, S)."""
    with torch.no_grad():
        b, h, _, keys = scores_BHLS.shape
        rows = max(1, _ENTRIES // max(1, h * keys))
        sums_H, counts_H = scores_BHLS.new_zeros(2, h, dtype=torch.float32)
        for sample in _spread(b):
            for block_HLS in scores_BHLS[sample].detach().split(rows, 1):
                scores_HLS = block_HLS.float()
                seen_HL = (scores_HLS > _MASKED).sum(-1)
                _accumulate(scores_HLS.softmax(-1), seen_HL, sums_H, counts_H)
        share_H: Tensor = sums_H / counts_H
        return share_H


def entropy_of_multi_head(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The same for a call of ``F.multi_head_attention_forward``, which projects and attends in one."""
    bound = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
    given = bound.arguments
    heads = given["num_heads"]
    batched = given["query"].dim() == 3
    if batched:
        b = given["query"].shape[1]
        chosen = _spread(b)
        for name in ("query", "key", "value"):
            given[name] = given[name][:, chosen]
        if isinstance(given.get("key_padding_mask"), Tensor):
            given["key_padding_mask"] = given["key_padding_mask"][chosen]
        mask = given.get("attn_mask")
        if isinstance(mask, Tensor) and mask.dim() == 3:
            given["attn_mask"] = mask.view(b, heads, *mask.shape[1:])[chosen].flatten(0, 1)
    given.update(need_weights=True, average_attn_weights=False, dropout_p=0.0)
    if given.get("is_causal") and given.get("attn_mask") is not None:
        given["is_causal"] = False
    with torch.no_grad():
        _, weights = function(*bound.args, **bound.kwargs)
        weights_BHLS = weights if weights.dim() == 4 else weights.unsqueeze(0)
        # A weight of zero can be a mask or a collapse: only the masks tell.
        seen_BHLS = torch.ones_like(weights_BHLS, dtype=torch.bool)
        own = _allowed(given.get("attn_mask"))
        if own is not None:
            shaped = own.view(-1, heads, *own.shape[1:]) if own.dim() == 3 else own
            seen_BHLS[..., : own.shape[-1]] &= shaped
        padding = _allowed(given.get("key_padding_mask"))
        if padding is not None:
            shaped = padding.view(-1, 1, 1, padding.shape[-1])
            seen_BHLS[..., : padding.shape[-1]] &= shaped
        sums_H, counts_H = weights_BHLS.new_zeros(2, heads, dtype=torch.float32)
        for weights_HLS, seen_HLS in zip(weights_BHLS, seen_BHLS, strict=True):
            _accumulate(weights_HLS.float(), seen_HLS.sum(-1), sums_H, counts_H)
        share_H: Tensor = sums_H / counts_H
        return share_H


def _allowed(mask: Any) -> Tensor | None:
    """Where a mask of nn.MultiheadAttention lets a query see a key: True masks, and so does -inf."""
    if not isinstance(mask, Tensor):
        return None
    return ~mask if mask.dtype == torch.bool else mask > _MASKED


def _accumulate(p_HLS: Tensor, seen_HL: Tensor, sums_H: Tensor, counts_H: Tensor) -> None:
    """Add the share of the largest possible entropy of every query that sees at least two keys.

    Args:
        p_HLS: the weights.
        seen_HL: how many keys each query sees; may lack the axis of heads.
        sums_H: of the shares.
        counts_H: of the queries.
    """
    entropy_HL = torch.special.entr(p_HLS).sum(-1)
    counted = (seen_HL >= 2).expand(entropy_HL.shape)
    share_HL = entropy_HL / seen_HL.clamp_min(2).log()
    sums_H += torch.where(counted, share_HL, 0.0).sum(-1)
    counts_H += counted.sum(-1)


def _spread(b: int) -> list[int]:
    """At most `SAMPLES` samples, evenly spread."""
    return sorted({round(i * (b - 1) / (SAMPLES - 1)) for i in range(SAMPLES)}) if b else []


def _mask(mask: Tensor | None, b: int, h: int, queries: int, keys: int) -> Tensor | None:
    if mask is None:
        return None
    return (
        mask.detach().expand(b, h, queries, keys)
        if mask.dim() <= 4
        else mask.detach().reshape(-1, *mask.shape[-3:]).expand(b, h, queries, keys)
    )
