"""How much of a program's time measurements may take."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from curvcli.errors import UsageError


def parse_share(text: str | float | None) -> float | None:
    """``"2%"`` or ``0.02`` as a fraction; None: no limit.

    Raises:
        UsageError: it is no share between 0 and 1.

    >>> parse_share("2%")
    0.02
    """
    if text is None:
        return None
    try:
        value = (
            float(text[:-1]) / 100 if isinstance(text, str) and text.endswith("%") else float(text)
        )
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise UsageError(f"budget {text!r} is no share of the time", "write '2%', 0.02 or None")
    return value


class Share:
    """Time spent on measurements beside the time since the start.

    A measurement is made where the share would still hold when it has taken as long as the one before. The first
    one is made whatever it takes; those after it wait until the share holds again.

    Args:
        limit: share of the whole time, measurements included; None: none.
        clock: seconds.
    """

    def __init__(self, limit: float | None, clock: Callable[[], float]) -> None:
        self.limit, self._clock = limit, clock
        self._began = clock()
        self.spent = 0.0
        self.last: float | None = None
        """Time of the measurement before."""

    def allows(self) -> bool:
        """Whether another measurement fits."""
        if self.limit is None or self.last is None:
            return True
        elapsed = self._clock() - self._began
        return self.spent + self.last <= self.limit * (elapsed + self.last)

    @contextmanager
    def measurement(self) -> Iterator[Callable[[], float]]:
        """A measurement and all that is done with it; gives the seconds since it began."""
        began = self._clock()
        try:
            yield lambda: self._clock() - began
        finally:
            self.last = self._clock() - began
            self.spent += self.last

    @contextmanager
    def preparation(self) -> Iterator[None]:
        """What is kept for a measurement to come."""
        began = self._clock()
        try:
            yield
        finally:
            self.spent += self._clock() - began

    @property
    def used(self) -> float:
        """The share of the time since the start that measurements took."""
        elapsed = self._clock() - self._began
        return self.spent / elapsed if elapsed > 0 else 0.0
