"""What is known of a target by now, without loading anything more."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curvcli.loading.models.huggingface import Directory
    from curvcli.loading.spec import TargetSpec
    from curvcli.loading.target import Target


def described(spec: "TargetSpec", target: "Target | None") -> Mapping[str, Any]:
    """The fields of the answer's ``target``; of one that nothing was asked of yet, its settings."""
    known = vars(target) if target is not None else {}
    objective = target.made if target is not None else None
    samples = sum(batch.size for batch in known.get("model_batches", ())) or None
    directory: Directory | None = known.get("directory")
    loss = target.loss_with(directory) if target is not None else spec.loss
    dtype = target.dtype if target is not None and "model" in known else None
    return {
        "checkpoint": spec.checkpoint,
        "checkpoint_sha256": target.weights.known_sha256 if target is not None else None,
        "model": spec.model,
        "data": spec.data,
        "data_sha256": known.get("data_sha256"),
        "samples": objective.samples if objective else samples,
        "loss_terms": objective.weight if objective else None,
        "loss": spec.objective or loss,
        "mode": "train" if spec.train_mode else "eval",
        "dtype": str(dtype).removeprefix("torch.") if dtype is not None else None,
        "device": str(known["device"]) if "device" in known else None,
        "seed": spec.seed,
        "guess": target.guess if target is not None else None,
        **(target.called() if target is not None else {}),
    }
