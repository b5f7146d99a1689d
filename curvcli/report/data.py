"""What every answer is made of: the JSON envelope, and the blocks that people are shown."""

from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from curvcli.errors import printable
from curvcli.report.cost import CostInfo

SCHEMA = "curvcli/1"

Severity = Literal["error", "warning", "note"]
Number = Annotated[
    float | None, Meta(description="null where the number is not finite or not known")
]


class Finding(Struct, frozen=True):
    """Something the user should know, with the evidence."""

    rule: Annotated[str, Meta(description="stable identifier of the rule")]
    severity: Severity
    subject: Annotated[str, Meta(description="what it is about: a layer, a tensor, a field")]
    value: Number
    threshold: Number
    message: str


Level = Literal["good", "attention", "bad"]


MARKS: dict[Level, str] = {"good": "✓", "attention": "!", "bad": "✗"}


class Headline(Struct, frozen=True):
    """The answer in one sentence, for somebody who reads no more."""

    level: Annotated[
        Level,
        Meta(
            description="good: certain, and nothing to do; attention: to look at, or not known yet; bad: wrong"
        ),
    ]
    sentence: str


def told(headline: Headline) -> str:
    """The sentence behind its mark, on one line, without escape sequences."""
    return f"{MARKS[headline.level]} {printable(headline.sentence)}"


# A loss so many times that of the best constant predictor is that of answers that are sure and wrong.
WRONG = 2.0


class FitInfo(Struct, frozen=True):
    """How well the network does on the data, from one forward pass; null where the loss has no such thing."""

    loss: Annotated[Number, Meta(description="of the data alone, without weight decay")]
    chance: Annotated[Number, Meta(description="loss of the best constant predictor")]
    accuracy: Number
    majority: Annotated[Number, Meta(description="accuracy of the best constant predictor")]
    at_chance: Annotated[
        bool,
        Meta(
            description="the loss is at least 0.95 of chance, and the accuracy near that of a constant"
        ),
    ]

    @property
    def why(self) -> str:
        """What a network that is no better than a constant has done."""
        if (self.loss or 0.0) > WRONG * (self.chance or 0.0) > 0:
            return "the network has not learned, or is sure of wrong answers"
        return "the network has not learned, or has died"


class TargetInfo(Struct, frozen=True):
    """What was inspected."""

    checkpoint: str | None
    checkpoint_sha256: str | None
    model: str | None
    data: str | None
    data_sha256: Annotated[str | None, Meta(description="over the batches' tensors")]
    samples: int | None
    loss_terms: Annotated[float | None, Meta(description="W: terms that the mean runs over")]
    loss: str | None
    mode: Literal["eval", "train"]
    dtype: str | None
    device: str | None
    seed: int
    fit: FitInfo | None = None
    guess: Annotated[
        str | None,
        Meta(description="what is assumed of a network that is recognised by its shapes"),
    ] = None


class ErrorInfo(Struct, frozen=True):
    """Why there is no result."""

    code: Annotated[
        str,
        Meta(
            description="usage, checkpoint, model, data, loss, non-finite, output, no-answer, memory or internal"
        ),
    ]
    message: str
    hint: str | None
    exit_code: int


R = TypeVar("R")


class Envelope(Struct, Generic[R], frozen=True, kw_only=True):
    """The one form of every answer."""

    schema: Annotated[Literal["curvcli/1"], Meta(description="version of this contract")] = (
        "curvcli/1"
    )
    command: str
    version: str
    target: TargetInfo | None
    verdict: Annotated[Headline | None, Meta(description="null: there is no answer")] = None
    result: R | None
    complete: Annotated[
        bool, Meta(description="false: a part of what was asked for; time or products ran out")
    ] = True
    findings: list[Finding]
    notes: Annotated[list[str], Meta(description="what was switched or skipped")]
    cost: CostInfo
    error: ErrorInfo | None = None


class Case(Struct, frozen=True, kw_only=True):
    """One thing that was to hold, and whether it does, for CI systems."""

    suite: Annotated[str, Meta(description="what was inspected")]
    name: str
    rule: Annotated[str, Meta(description="stable identifier")]
    status: Literal["pass", "violation", "undecided", "error", "skipped"]
    severity: Severity
    message: str
    path: Annotated[str, Meta(description="file to show it at")]
    line: int
    seconds: float = 0.0
    counts: Annotated[bool, Meta(description="whether it fails the run")] = False


class Measured(Struct, frozen=True):
    """A number with its error."""

    value: float | None
    error: float | None


class Bar(Struct, frozen=True):
    """A share of the full width, for a column that is seen at a glance."""

    share: Annotated[float, Meta(ge=0, le=1)]


class State(Struct, frozen=True):
    """A word that says how something is, in the colour of its level."""

    text: str
    level: Level


def yes(value: bool | None, *, good: bool = True) -> "Cell":
    """``yes`` or ``no`` as a state: as it should be, or not."""
    return (
        None
        if value is None
        else State("yes" if value else "no", "good" if value is good else "bad")
    )


Cell = str | int | float | bool | Measured | Bar | State | None


class Column(Struct, frozen=True):
    """Heading of a table column; numbers are aligned right and stay on one line."""

    name: str
    numeric: bool = True
    rank: Annotated[
        int,
        Meta(description="columns of the highest rank leave first where there is no room; 0: last"),
    ] = 1
    folds: Annotated[
        bool,
        Meta(description="a text that may go on on the next line; names are shortened instead"),
    ] = False


class Table(Struct, frozen=True):
    """Rows under headings."""

    title: str
    columns: tuple[Column, ...]
    rows: Sequence[tuple[Cell, ...]]
    caption: str | None = None
    of_bars: Annotated[str | None, Meta(description="caption of bars, left out with them")] = None

    def legend(self, *, bars: bool = True) -> str | None:
        """The caption, with that of the bars where there are any."""
        return "; ".join(filter(None, [self.caption, self.of_bars if bars else None])) or None


class Facts(Struct, frozen=True):
    """Labelled values."""

    rows: Sequence[tuple[str, Cell]]
    title: str | None = None


class Sentence(Struct, frozen=True):
    """The answer in plain language."""

    text: str
    tone: Literal["good", "plain", "bad"] = "plain"


Mark = Literal["line", "points", "stems", "bars"]


class Series(Struct, frozen=True):
    """One curve of a chart, or points, stems or bars at its places."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Annotated[
        Sequence[float] | None,
        Meta(description="lower edge of a line's band; lower end of another mark's error bar"),
    ] = None
    high: Sequence[float] | None = None
    mark: Mark = "line"


class Chart(Struct, frozen=True):
    """Curves over one axis; points that are not finite are left out."""

    title: str
    x_label: str
    series: Sequence[Series]
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False


class BarGroup(Struct, frozen=True):
    """One bar for each name."""

    name: str
    values: Annotated[Sequence[float], Meta(description="NaN where it is not known")]
    errors: Sequence[float] | None = None


class Bars(Struct, frozen=True):
    """Figures by name, from the top down."""

    title: str
    value_label: str
    names: Sequence[str]
    groups: Sequence[BarGroup]
    log: bool = False
    tabled: Annotated[
        bool, Meta(description="a table beside it tells the same in text, which leaves it out")
    ] = False


class Spot(Struct, frozen=True):
    """A named point of a map."""

    name: str
    x: float
    y: float


class HeatMap(Struct, frozen=True):
    """A value over a plane; NaN where it is not known."""

    title: str
    x_label: str
    y_label: str
    value_label: str
    x: Sequence[float]
    y: Sequence[float]
    values: Annotated[Sequence[Sequence[float]], Meta(description="a row for each y")]
    spots: Sequence[Spot] = ()
    path: Annotated[bool, Meta(description="whether the spots are joined in their order")] = False
    log: Annotated[bool, Meta(description="values are told apart on a logarithmic scale")] = False
    model: Annotated[
        Sequence[Sequence[float]],
        Meta(description="another surface, whose level lines are drawn dashed in pictures"),
    ] = ()
    x_names: Annotated[
        Sequence[str], Meta(description="of the places, where they are names and no numbers")
    ] = ()
    y_names: Sequence[str] = ()
    texts: Annotated[
        Sequence[Sequence[str]], Meta(description="what is told of each cell, beside its value")
    ] = ()
    tabled: Annotated[
        bool, Meta(description="a table beside it tells the same in text, which leaves it out")
    ] = False


class Card(Struct, frozen=True):
    """What one question says, at a glance."""

    label: str
    headline: Headline
    section: Annotated[str, Meta(description="title of the section that it stands for")]


class Cards(Struct, frozen=True):
    """What several questions say, at a glance."""

    cards: Sequence[Card]


class Section(Struct, frozen=True):
    """The answer to one question among several."""

    title: str
    headline: Headline | None
    blocks: "Sequence[Block]"
    findings: Sequence[Finding] = ()
    notes: Sequence[str] = ()
    command: Annotated[str | None, Meta(description="that asks the question again")] = None
    meaning: Annotated[str, Meta(description="how to read the figures")] = ""


Picture = Chart | Bars | HeatMap
Block = Table | Facts | Sentence | Chart | Bars | HeatMap | Cards | Section


def flat(blocks: "Sequence[Block]") -> "list[Block]":
    """The blocks, those of sections one after the other."""
    found: list[Block] = []
    for block in blocks:
        found += flat(block.blocks) if isinstance(block, Section) else [block]
    return found


def json_schema(result: type) -> dict[str, Any]:
    """The JSON Schema of an answer, generated from its types."""
    return msgspec.json.schema(Envelope[result])  # type: ignore[valid-type]
