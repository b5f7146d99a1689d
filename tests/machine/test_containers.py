"""Nested containers keep their types, whatever is done to the tensors in them."""

from collections import UserDict, namedtuple
from typing import Any

import torch

from curvcli.machine.containers import fresh, joined, mapped, move, take, tensors_in

Pair = namedtuple("Pair", ["left", "right"])


class Encoding(UserDict[str, Any]):
    """A mapping with attributes, as tokenisers return."""

    def __getattr__(self, name: str) -> Any:
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(name)


def nested() -> dict[str, Any]:
    return {
        "pair": Pair(torch.arange(4.0), [torch.arange(8).view(4, 2), "text"]),
        "encoding": Encoding({"ids": torch.ones(4, 3)}),
        "none": None,
    }


def test_every_container_keeps_its_type() -> None:
    for changed in (mapped(nested(), lambda v: v), take(nested(), [0, 2]), fresh(nested())):
        assert type(changed["pair"]) is Pair
        assert type(changed["encoding"]) is Encoding
        assert changed["pair"].right[1] == "text"
        assert changed["encoding"].ids.shape[1] == 3
    assert [len(t) for t in tensors_in(take(nested(), [0, 2]))] == [2, 2, 2]


def test_moving_casts_floats_and_leaves_integers() -> None:
    moved = move(nested(), torch.device("cpu"), torch.float64)
    assert [t.dtype for t in tensors_in(moved)] == [torch.float64, torch.int64, torch.float64]


def test_what_is_taken_out_of_a_fresh_copy_stays_in_the_batch() -> None:
    batch = nested()
    copy = fresh(batch)
    copy.pop("pair")
    copy["encoding"].pop("ids")
    assert "pair" in batch
    assert "ids" in batch["encoding"]
    assert next(iter(tensors_in(copy)), None) is None


def test_parts_are_joined_only_where_everything_but_the_samples_is_the_same() -> None:
    """Keys in another order are the same; a length, a kind or a shape that differs is not."""
    x, y = torch.zeros(2, 3), torch.ones(4, 3)
    whole = joined([{"x": x, "n": 3}, {"n": 3, "x": y}])
    assert whole is not None
    assert torch.equal(whole["x"], torch.cat([x, y]))
    assert whole["n"] == 3
    for other in ({"x": y, "n": 4}, {"x": y.double(), "n": 3}, {"x": y[:, :2], "n": 3}, {"x": y}):
        assert joined([{"x": x, "n": 3}, other]) is None
