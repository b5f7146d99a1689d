"""What one forward pass says of data, outputs and loss."""

import math
from typing import Annotated

from msgspec import Meta, Struct

from curvcli.report.data import WRONG, FitInfo, Number

AT_CHANCE = 0.95
"""A loss above this share of the best constant predictor's has learned nothing."""
LEARNED = 0.2
"""From the accuracy of the commonest class so far towards 1 is more than chance or a few samples learned by heart."""
RENAMED = 0.6
"""So many right answers under other names of the classes, twice as many as under their own, are no chance."""
MANY = 8
"""Of so many outputs some are negative, unless something makes them positive."""
CONSTANT = 1e-5
"""Outputs that differ between samples by less of their size are constant."""


LOGITS = ("cross_entropy", "token_cross_entropy", "bce_with_logits")
"""Losses of logits, which may be any numbers."""
LARGE, SMALL = 5.0, 0.2
"""Initial weights are made for inputs of RMS 1; beyond these they are of another scale."""
FAR = 5.0
"""Running statistics at a greater distance are not those of the data."""


class ChannelInfo(Struct, frozen=True):
    """An input, or one channel of an image."""

    name: str
    mean: Number
    rms: Number
    nonzero: Annotated[Number, Meta(description="share of the entries that are not zero")] = None


class RunningInfo(Struct, frozen=True):
    """A BatchNorm's running statistics against those of the data."""

    name: str
    variance_ratio: Annotated[
        Number, Meta(description="median over channels: variance of the data over the running one")
    ]
    shift: Annotated[
        Number, Meta(description="RMS over channels: distance of the means in running deviations")
    ]

    @property
    def distance(self) -> float:
        """1 where they agree: the ratio of the variances, up or down, or 1 + the squared shift."""
        ratio = self.variance_ratio
        spread = max(ratio or 0.0, 1 / ratio if ratio else 0.0)
        return max(spread, 1 + (self.shift or 0.0) ** 2)


class SanityInfo(Struct, frozen=True, kw_only=True):
    """What one forward pass says."""

    loss: Annotated[Number, Meta(description="of the data alone, without weight decay")]
    chance: Annotated[Number, Meta(description="loss of the best constant predictor")]
    uniform: Annotated[Number, Meta(description="ln C: loss of equal probabilities")]
    accuracy: Number
    majority: Annotated[Number, Meta(description="share of the commonest class")]
    class_counts: list[int]
    output_spread: Annotated[
        Number, Meta(description="deviation of the outputs over the samples, over their RMS")
    ]
    simplex: Annotated[bool, Meta(description="outputs are probabilities that sum to one")]
    unit_interval: Annotated[bool, Meta(description="all outputs lie in [0, 1]")]
    log_simplex: Annotated[bool, Meta(description="outputs are logarithms of probabilities")]
    largest: Annotated[Number, Meta(description="|output|")] = None
    rectified: Annotated[
        bool, Meta(description="no output is negative, and a hundredth or more are exactly zero")
    ] = False
    renaming: Annotated[
        list[int],
        Meta(
            description="commonest label of each answer, -1: never answered; empty unless one to one"
        ),
    ] = []
    renamed_accuracy: Annotated[Number, Meta(description="if the classes had these names")] = None
    inputs: list[ChannelInfo]
    running: list[RunningInfo]
    gathered: Annotated[
        bool,
        Meta(description="false: no BatchNorm has seen a batch whose statistics it could use"),
    ] = True
    frozen: Annotated[list[str], Meta(description="parameters that are not trained")]

    @property
    def at_chance(self) -> bool:
        """Whether the loss is no better than that of the best constant predictor, and the accuracy not much."""
        if self.loss is None or not self.chance:
            return False
        if self.accuracy is not None and self.majority is not None:
            right = self.majority + LEARNED * (1 - self.majority)
            if self.accuracy > right:
                return False
        return self.loss >= AT_CHANCE * self.chance

    @property
    def in_unit_interval(self) -> bool:
        """Whether it is no chance that all outputs lie in [0, 1]: fresh outputs of few classes may all be positive."""
        return self.unit_interval and len(self.class_counts) >= MANY

    @property
    def renamed(self) -> bool:
        """Whether the classes are certainly taken for one another: sure, wrong, and nearly right by other names."""
        found, labels = self.renamed_accuracy, sum(self.class_counts)
        if found is None or self.accuracy is None or not self.majority or not self.wrong:
            return False
        spread = 4 * math.sqrt(self.majority * (1 - self.majority) / labels)
        enough = labels >= 10 * len(self.class_counts)
        return enough and found >= max(RENAMED, 2 * self.accuracy, self.majority + spread)

    @property
    def renaming_told(self) -> str:
        """The first classes that go by another name: ``0 is labelled 1, 1 is labelled 2``."""
        other = [
            f"{i} is labelled {name}" for i, name in enumerate(self.renaming) if name not in (i, -1)
        ]
        return ", ".join(other[:3]) + (", …" if len(other) > 3 else "")

    @property
    def wrong(self) -> bool:
        """Whether the answers are sure and wrong: a loss far above those of constants, and few right answers.

        A fresh network of many classes has a loss of ln C, which may be far above that of the few classes in a batch.
        """
        if self.uniform is None or not self.chance or not self.at_chance or self.constant:
            return False
        return (self.loss or 0.0) > WRONG * max(self.chance, self.uniform)

    @property
    def fit(self) -> FitInfo:
        """What the head of an answer says of it."""
        return FitInfo(self.loss, self.chance, self.accuracy, self.majority, self.at_chance)

    @property
    def constant(self) -> bool:
        """Whether the output is the same for every sample."""
        return self.output_spread is not None and self.output_spread < CONSTANT

    def suspicions(self, loss: str | None) -> list[str]:
        """What is wrong with outputs and inputs, in a few words each; `curvcli gradients` says more of it."""
        told = []
        if self.renamed:
            told.append(
                f"{self.renamed_accuracy:.0%} of its answers would be right if the classes had other names "
                f"({self.renaming_told}): labels off by one, or in another order than in training"
            )
        elif self.wrong:
            told.append(
                f"it is sure of wrong answers (loss {self.loss:.3g}, that of a constant {self.chance:.3g}): labels or "
                "inputs that are not those of training, or a training that diverged"
            )
        if loss in ("cross_entropy", "token_cross_entropy") and self.simplex:
            told.append(
                "its outputs are probabilities already, and cross_entropy applies softmax itself"
            )
        elif loss == "bce_with_logits" and self.unit_interval:
            told.append("its outputs lie in [0, 1], and bce_with_logits applies the sigmoid itself")
        elif loss in LOGITS and self.in_unit_interval:
            told.append(f"its outputs lie in [0, 1], and {loss} takes logits of any size")
        elif loss in LOGITS and self.rectified:
            told.append(f"its outputs end in a ReLU, and {loss} takes logits of both signs")
        if self.constant:
            told.append("its output is the same for every sample")
        scaled = [
            c
            for c in self.inputs
            if c.rms and not SMALL * (c.nonzero or 1.0) ** 0.5 <= c.rms <= LARGE
        ]
        if scaled:
            worst = scaled[0]
            why = (
                "not divided by 255, or not standardised"
                if (worst.rms or 0.0) > LARGE
                else "divided twice, or in another unit"
            )
            told.append(
                f"the RMS of {worst.name} is {worst.rms:.3g}, and about 1 is usual ({why}?)"
            )
        return told
