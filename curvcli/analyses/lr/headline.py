"""Which learning rate works, in one sentence."""

from curvcli.analyses.lr.result import LrResult
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.report.data import Headline
from curvcli.report.numbers import number

# From this share of dead units on a network is one that a lower rate does not save.
_DEAD = 0.9
# A loss that stays above this share of its start has not fallen.
_FALLS = 0.995
_FAILED = {
    "diverges": "the loss diverges",
    "rises": "the loss rises again",
    "dies": "units die",
    "unstable": "it stays too high for the sharpest direction (λ · rate above the limit)",
}


def headline(answer: Answer[LrResult]) -> Headline:
    """The range seen to work, the best in it, and where it ends."""
    result = answer.result
    if result.highest is None or result.lowest is None or result.best is None:
        which = "that was tried works" if result.trials else "was tried"
        return judged(answer, f"No learning rate {which} for {result.optimizer}.", "attention")
    if result.dead_fraction > _DEAD:
        text = (
            f"{result.dead_fraction:.0%} of the units are dead, and no learning rate brings them back: start from "
            "fresh weights, or from an earlier checkpoint."
        )
        return judged(answer, text, "attention")
    ends = [t.loss for t in result.trials if t.verdict == "works" and t.loss is not None]
    if min(ends, default=0.0) > _FALLS * result.loss:
        text = f"The loss falls at no rate for {result.optimizer}: it has converged, or cannot be trained from here."
        return judged(answer, text, "attention")
    best, lowest, highest = (number(r, 3) for r in (result.best, result.lowest, result.highest))
    text = (
        f"{result.optimizer}: learning rates up to {highest} work; the loss falls most with {best}"
    )
    if lowest != best:
        text += f", and at least half as much from {lowest} on"
    if result.fails_at is not None:
        failed = next((t.verdict for t in result.trials if t.rate == result.fails_at), None)
        why = f": {_FAILED[failed]}" if failed in _FAILED else ""
        text += f". The lowest that failed is {number(result.fails_at, 3)}{why}"
    own = next((t for t in result.trials if t.rate == result.checkpoint_rate), None)
    if own is not None:
        outcome = "works" if own.verdict == "works" else f"does not: {_FAILED[own.verdict]}"
        text += f". The checkpoint's own, {number(own.rate, 3)}, {outcome}"
    return judged(answer, f"{text}.")
