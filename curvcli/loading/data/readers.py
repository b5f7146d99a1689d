"""How kinds of data are read that the model has a say in: text, tables, images."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from curvcli.errors import DataError
from curvcli.loading.data.batches import Readers, chosen_names
from curvcli.loading.data.images import TakesGrey, image_batches, prepare_pixels, preprocessing
from curvcli.loading.data.pairs import TARGET_NAMES, belonging
from curvcli.loading.data.tabular import read_table
from curvcli.loading.data.text import read_records
from curvcli.loading.data.tokens import token_batches
from curvcli.loading.models.huggingface import Directory
from curvcli.loading.spec import TargetSpec


def readers_of(
    spec: TargetSpec, directory: Directory | None, notes: list[str], takes_grey: TakesGrey
) -> Readers:
    """How data is read that the model has a say in."""

    def text(path: Path) -> Iterable[Any]:
        if directory is None:
            raise DataError(
                f"{path.name} is text, and only a Hugging Face directory says how it is tokenised",
                "name such a directory as the checkpoint, or give batches by --data file.py:function",
            )
        return token_batches(
            read_records(path, spec.text_key or "text"),
            directory,
            length=spec.sequence_length,
            batch_size=spec.batch_size,
            seed=spec.seed,
            notes=notes,
        )

    def table(path: Path) -> dict[str, Any]:
        target = spec.target_column or spec.target_key
        return read_table(path, target, spec.input_key, notes, spec.memory_bytes)

    def images(path: Path) -> Iterable[Any]:
        how = preprocessing(spec.model, spec.model_args, directory)
        return image_batches(path, how, spec.batch_size, notes, spec.memory_bytes, takes_grey)

    def prepare(tensors: dict[str, Any]) -> dict[str, Any]:
        inputs, target = belonging(tensors, spec.input_key, spec.target_key)
        return prepare_pixels(
            tensors,
            spec.model,
            spec.model_args,
            directory,
            {target} if target else set(TARGET_NAMES) - set(inputs),
            notes,
            takes_grey,
        )

    def chosen(names: Iterable[str]) -> list[str]:
        if spec.objective is not None:
            return chosen_names(names, [], spec.target_key)
        listed = list(names)
        return chosen_names(listed, *belonging(listed, spec.input_key, spec.target_key))

    return Readers(text=text, table=table, images=images, prepare=prepare, chosen=chosen)
