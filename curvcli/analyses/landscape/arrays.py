"""The grid of a landscape as arrays, for files of NumPy."""

from typing import Any

from curvcli.analyses.landscape.result import LandscapeResult


def arrays(result: LandscapeResult) -> dict[str, Any]:
    """Names and values; null becomes NaN when they are written."""
    names = [axis.name for axis in result.axes]
    marks = {
        "mark_names": [m.name for m in result.marks],
        "marks": [m.place for m in result.marks],
    }
    head = {
        "axes": names,
        "norms": [a.norm for a in result.axes],
        **(marks if result.marks else {}),
    }
    if result.map is not None:
        grids = {
            name: getattr(result.map, name)
            for name in result.map.__struct_fields__
            if getattr(result.map, name)
        }
        return {**head, **grids}
    fields = [f for f in ("t", "distance", "loss", "loss_standard_error", "change_standard_error", "model",
        "accuracy", "other_loss", "other_loss_standard_error", "other_accuracy")
        if any(getattr(p, f) is not None for p in result.curve)
    ]  # fmt: skip
    return {**head, **{f: [getattr(p, f) for p in result.curve] for f in fields}}
