"""`--open`: the answer as a page in the browser."""

import tempfile
import webbrowser
from pathlib import Path
from typing import Any

from curvcli.analyses.shared.question import Question
from curvcli.cli.streams import say


def shown_in_browser(question: Question, output: dict[str, Any]) -> dict[str, Any]:
    """The output options of a page: in the file that -o names, or in a new one of the temporary folder."""
    if output["output"] is not None:
        return output
    folder = tempfile.mkdtemp(prefix="curvcli-")
    return {**output, "format": "html", "output": str(Path(folder) / f"{question.name}.html")}


def show(path: str) -> None:
    """Open the file; where there is no browser, say where it is."""
    address = Path(path).resolve().as_uri()
    if not webbrowser.open(address):
        say(f"there is no browser to open; the answer is in {path}\n")
