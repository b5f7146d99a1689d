"""`--watch`: a series that is not over yet, looked at again whenever a checkpoint has come."""

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.question import Question
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.shared.targets import series_in
from curvcli.cli.streams import say
from curvcli.errors import CurvError, UsageError, printable
from curvcli.report.numbers import text

SECONDS = 2.0
"""Between two looks; a file that has the same size in both is taken to be whole."""

Asked = tuple[Subject, Journal, Answer[Any]]
Files = dict[str, tuple[int, int]]


def follow(
    ask: Callable[[Journal, str], tuple[Subject, Answer[Any]]],
    question: Question,
    arguments: list[str],
    interrupted: Callable[[], bool],
    item: Callable[[Any], None] | None,
    terminal: bool,
) -> Asked:
    """Ask again whenever there are new checkpoints, until Ctrl-C; the last answer.

    Args:
        ask: (journal, file of state) -> answer for the checkpoints that are there now.
        question: that is asked.
        arguments: targets, of which one at least is a directory.
        interrupted: whether the user has asked to end.
        item: takes each new point; None: a line on stderr.
        terminal: whether a live view is drawn.

    Raises:
        UsageError: there is no directory to watch; CurvError: nothing could be answered by the end.
    """
    if not any(Path(a).is_dir() for a in arguments):
        raise UsageError(
            "--watch follows a directory, and none is named",
            "curvcli track --watch run.toml DIRECTORY",
        )
    known: set[str] = set()

    def told(point: Any) -> None:
        if point.checkpoint not in known and not terminal:
            known.add(point.checkpoint)
            (item or _line)(point)

    found: Asked | None = None
    problem: CurvError | None = None
    seen, before = Files(), Files()
    with (
        tempfile.TemporaryDirectory() as folder,
        _Screen() if terminal else nullcontext() as screen,
    ):
        while not interrupted():
            now = _files(arguments)
            if now == before and now != seen:
                journal = Journal(interrupted=interrupted, item=told)
                try:
                    subject, answer = ask(journal, str(Path(folder) / "state"))
                    found, seen = (subject, journal, answer), now
                    if screen is not None:
                        screen.show(question, answer)
                except UsageError:
                    raise
                except CurvError as error:  # a file that is no checkpoint yet
                    problem, seen = error, now
                    say(f"note: {printable(error.message)}\n" if not terminal else "")
            before = now
            _wait(interrupted)
    if found is None:
        raise problem or CurvError("no checkpoint came", "name the directory that the training writes to")  # fmt: skip
    return found


def _wait(interrupted: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and not interrupted():
        time.sleep(0.1)


def _files(arguments: list[str]) -> Files:
    """Size and time of every file of every checkpoint that is there now."""
    found: Files = {}
    for argument in arguments:
        try:
            places = [Path(p) for p in series_in(argument)] if Path(argument).is_dir() else []
        except UsageError:  # none yet
            continue
        for place in places:
            for file in sorted(place.iterdir()) if place.is_dir() else [place]:
                state = file.stat() if file.exists() else None
                if state is not None:
                    found[str(file)] = (state.st_size, state.st_mtime_ns)
    return found


def _line(point: Any) -> None:
    """One checkpoint."""
    parts = [point.checkpoint if point.step is None else f"step {point.step}"]
    if point.error is not None:
        parts.append(point.error.message)
    if point.loss is not None:
        parts.append(f"loss {text(point.loss)}")
    if point.lambda_max is not None:
        parts.append(f"λ max {text(point.lambda_max.value)} ± {text(point.lambda_max.residual)}")
    if point.edge is not None:
        parts.append(f"{point.edge} the limit" if point.edge != "undecided" else point.edge)
    say(printable("  ".join(parts)) + "\n")


class _Screen:
    """The answer so far, drawn again in its place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> "_Screen":
        self._live.start()
        self._say("waiting for checkpoints")
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _say(self, shown: str) -> None:
        from rich.text import Text

        whole = Text.from_ansi(shown.rstrip("\n") + "\n\nwatching, Ctrl-C ends with this answer")
        self._live.update(whole, refresh=True)

    def show(self, question: Question, answer: Answer[Any]) -> None:
        """Draw it."""
        from io import StringIO

        from rich.console import Console

        from curvcli.report.text import terminal

        drawn = StringIO()
        console = Console(
            file=drawn, width=self._console.width, force_terminal=True, no_color=self._console.no_color
        )  # fmt: skip
        terminal.render(console, question.view(answer.result), answer.findings, answer.headline)
        self._say(drawn.getvalue())
