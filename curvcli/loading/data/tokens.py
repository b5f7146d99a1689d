"""Records of text -> batches of tokens, as the model's task needs them."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from curvcli.errors import DataError
from curvcli.loading.models.huggingface import Directory

DEFAULT_LENGTH = 128
BATCH = 8
_MASKED_SHARE = 0.15
_IGNORED = -100


def token_batches(
    records: Iterator[dict[str, Any]],
    directory: Directory,
    *,
    length: int | None,
    batch_size: int | None,
    seed: int,
    notes: list[str],
) -> Iterator[dict[str, Any]]:
    """Batches with ``input_ids`` (samples, length), mostly with ``labels``, by the directory's tokenizer.

    A causal model gets consecutive blocks of the text, without labels: it predicts its own tokens; a masked one
    blocks in which 15 % of the tokens are chosen, of which 80 % are masked, 10 % replaced and 10 % kept (Devlin et
    al. 2019); a classifier one record a sample, with its ``label``; a sentence encoder pairs: records with
    ``positive``, or else consecutive lines.

    Args:
        records: the text.
        directory: whose tokenizer, and whose task.
        length: tokens of a block, or at most of a sample; default 128, or what the model can hold.
        batch_size: samples of a batch.
        seed: of the masks.
        notes: told what was chosen.

    Raises:
        DataError: no text, no labels, or a length the model cannot hold.
    """
    tokenizer = directory.tokenizer()
    size = _length(tokenizer, directory, length, notes)
    task = directory.task
    if task == "classification":
        samples: Iterator[dict[str, Any]] = _classified(records, directory)
        yield from _padded(samples, tokenizer, size, batch_size or BATCH, notes)
    elif task == "sentences":
        yield from _padded(_pairs(records), tokenizer, size, 2 * (batch_size or BATCH), notes)
    elif task == "masked":
        blocks = _blocks(records, tokenizer, size, notes)
        yield from _masked(blocks, tokenizer, batch_size or BATCH, seed)
    elif task == "causal":
        blocks = _blocks(records, tokenizer, size, notes)
        for ids in _stacked(blocks, batch_size or BATCH):
            yield {"input_ids": ids}
    else:
        raise DataError(
            f"text cannot be turned into batches for {directory.architecture or 'this model'}: it has no head "
            "for words or classes",
            "give batches by --data file.py:function, and --loss or --objective",
        )


def _length(tokenizer: Any, directory: Directory, asked: int | None, notes: list[str]) -> int:
    config = directory.config
    known = [config.get(k) for k in ("max_position_embeddings", "n_positions", "n_ctx")]
    limit = min(
        [k for k in known if isinstance(k, int) and k > 0]
        + [int(min(tokenizer.model_max_length, 1 << 30))]
    )
    if asked is not None and asked > limit:
        raise DataError(
            f"--sequence-length {asked} is more than the {limit} tokens that the model can hold",
            f"pass --sequence-length {limit} or less",
        )
    chosen = asked or min(DEFAULT_LENGTH, limit)
    if asked is None:
        notes.append(f"sequences of at most {chosen} tokens (--sequence-length changes that)")
    return chosen


def _blocks(
    records: Iterator[dict[str, Any]], tokenizer: Any, size: int, notes: list[str]
) -> Iterator[list[int]]:
    """Consecutive blocks of the whole text; the last one, if it is shorter, is left out."""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    waiting: list[int] = []
    count = 0
    for record in records:
        waiting += tokenizer(record["text"], add_special_tokens=False)["input_ids"] + end
        while len(waiting) >= size:
            count += 1
            yield waiting[:size]
            waiting = waiting[size:]
    if not count and len(waiting) > 1:
        notes.append(f"the text has only {len(waiting)} tokens: one block of that length")
        yield waiting
    elif waiting:
        notes.append(f"the last {len(waiting)} tokens fill no block and are left out")


def _stacked(blocks: Iterator[list[int]], batch_size: int) -> Iterator[torch.Tensor]:
    while chunk := list(itertools.islice(blocks, batch_size)):
        yield torch.tensor(chunk, dtype=torch.long)


def _masked(
    blocks: Iterator[list[int]], tokenizer: Any, batch_size: int, seed: int
) -> Iterator[dict[str, Any]]:
    if tokenizer.mask_token_id is None:
        raise DataError("the tokenizer has no mask token", "save it with one")
    generator = torch.Generator().manual_seed(seed)
    for ids in _stacked(blocks, batch_size):
        draw = torch.rand(ids.shape, generator=generator)
        chosen = draw < _MASKED_SHARE
        if not chosen.any():
            chosen[0, 0] = True
        labels = torch.where(chosen, ids, _IGNORED)
        random = torch.randint(len(tokenizer), ids.shape, generator=generator)
        inputs = torch.where(draw < 0.8 * _MASKED_SHARE, tokenizer.mask_token_id, ids)
        inputs = torch.where(chosen & (draw >= 0.9 * _MASKED_SHARE), random, inputs)
        yield {"input_ids": inputs, "labels": labels}


def _classified(
    records: Iterator[dict[str, Any]], directory: Directory
) -> Iterator[dict[str, Any]]:
    known = directory.config.get("label2id")
    names = {str(k): v for k, v in known.items()} if isinstance(known, dict) else {}
    for record in records:
        label = record.get("label")
        if isinstance(label, str):
            if label not in names:
                raise DataError(
                    f"the label {label!r} is not in the model's label2id",
                    f"it has {list(names)[:8]}",
                )
            label = names[label]
        if label is None:
            raise DataError(
                "a classifier needs labels, and a record has none",
                'write {"text": "…", "label": …} lines (.jsonl)',
            )
        yield {"text": record["text"], "label": label}


def _pairs(records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Texts of pairs one after the other, the number of the pair as label."""
    waiting: str | None = None
    pair = 0
    for record in records:
        first, second = record["text"], record.get("positive")
        if not isinstance(second, str):
            if waiting is None:
                waiting = first
                continue
            first, second, waiting = waiting, first, None
        yield from ({"text": first, "label": pair}, {"text": second, "label": pair})
        pair += 1


def _padded(
    samples: Iterator[dict[str, Any]], tokenizer: Any, size: int, batch_size: int, notes: list[str]
) -> Iterator[dict[str, Any]]:
    cut = 0
    while chunk := list(itertools.islice(samples, batch_size)):
        texts = [s["text"] for s in chunk]
        tokens = tokenizer(
            texts, padding=True, truncation=True, max_length=size, return_tensors="pt"
        )
        cut += sum(len(tokenizer(t)["input_ids"]) > size for t in texts)
        labels = torch.tensor([s["label"] for s in chunk])
        yield {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "labels": labels,
        }
    if cut:
        notes.append(f"{cut} texts are longer than {size} tokens and were cut")
