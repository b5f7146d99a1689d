"""Draw the README's picture: the real output of a command, as SVG.

Run by ``make picture``.
"""

from pathlib import Path

from rich.console import Console

from curvcli import analyse, load
from curvcli.analyses.registry import get
from curvcli.report.head import headed
from curvcli.report.text import terminal

ROOT = Path(__file__).parent.parent


def picture() -> str:
    """What the terminal shows of the sample network, as SVG."""
    subject = load(str(ROOT / "sample_models" / "digits_mlp.toml"))
    answer = analyse("hessian", subject)
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=84, force_terminal=True, file=nowhere)
        console.print("$ curvcli hessian sample_models/digits_mlp.toml\n", highlight=False)
        blocks = headed(subject.info(), get("hessian").view(answer.result))
        terminal.render(console, blocks, answer.findings, answer.headline)
    return console.export_svg(title="curvcli", unique_id="curvcli")


def main() -> None:
    """Write it."""
    (ROOT / "docs" / "hessian.svg").write_text(picture(), "utf-8")


if __name__ == "__main__":
    main()
