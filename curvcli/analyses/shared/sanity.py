"""What one forward pass says of data, outputs and loss."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.report.data import FitInfo, Number

AT_CHANCE = 0.95
"""A loss above this share of the best constant predictor's has learned nothing."""
LEARNED = 0.2
"""From the accuracy of the commonest class so far towards 1 is more than chance or a few samples learned by heart."""
CONSTANT = 1e-5
"""Outputs that differ between samples by less of their size are constant."""


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
    inputs: list[ChannelInfo]
    running: list[RunningInfo]
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
        if loss in ("cross_entropy", "token_cross_entropy") and self.simplex:
            told.append(
                "its outputs are probabilities already, and cross_entropy applies softmax itself"
            )
        if loss == "bce_with_logits" and self.unit_interval:
            told.append("its outputs lie in [0, 1], and bce_with_logits applies the sigmoid itself")
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
