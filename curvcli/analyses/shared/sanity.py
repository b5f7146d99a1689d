"""What one forward pass says of data, outputs and loss."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.report.data import Number

AT_CHANCE = 0.95
"""A loss above this share of the best constant predictor's has learned nothing."""
CONSTANT = 1e-5
"""Outputs that differ between samples by less of their size are constant."""


class ChannelInfo(Struct, frozen=True):
    """An input, or one channel of an image."""

    name: str
    mean: Number
    rms: Number


class RunningInfo(Struct, frozen=True):
    """A BatchNorm's running statistics against those of the data."""

    name: str
    variance_ratio: Annotated[
        Number, Meta(description="median over channels: variance of the data over the running one")
    ]
    shift: Annotated[
        Number, Meta(description="RMS over channels: distance of the means in running deviations")
    ]


class SanityInfo(Struct, frozen=True, kw_only=True):
    """What one forward pass says."""

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

    def at_chance(self, loss: float | None) -> bool:
        """Whether a loss is no better than that of the best constant predictor."""
        return loss is not None and bool(self.chance) and loss >= AT_CHANCE * (self.chance or 0.0)

    @property
    def constant(self) -> bool:
        """Whether the output is the same for every sample."""
        return self.output_spread is not None and self.output_spread < CONSTANT
