"""Draws the gallery, docs/gallery.md and its pictures, from recorded answers: python docs/gallery.py."""

import sys
from pathlib import Path

from curvcli.analyses.registry import get
from curvcli.report import figure

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
FOLDER = ROOT / "docs" / "gallery"
# Recorded answer: what is seen, and the command.
SHOWN = {
    "hessian-digits_mlp": ("The ends of the spectrum, each eigenvalue with its residual", "hessian digits_mlp.toml"),
    "hessian-layers": ("Layer by layer", "hessian digits_cnn.toml --per-layer"),
    "density-mlp": ("All eigenvalues: a bulk at zero, and what stands apart", "density digits_mlp.toml"),
    "trace-mlp": ("Where the curvature is", "trace digits_mlp.toml"),
    "saddle-saddle": ("The way down from a saddle", "saddle saddle.toml"),
    "taylor-mlp": ("How far the quadratic model is right", "taylor digits_mlp.toml"),
    "landscape-mlp": ("The loss along a line, with its sampling error", "landscape digits_mlp.toml"),
    "landscape-eigen": ("The loss over a plane of eigenvectors", "landscape digits_mlp.toml --along eigen --dims 2"),
    "step-mlp": ("What a step promises, and what it brings", "step digits_mlp.toml"),
    "lr-linear": ("Short runs at several learning rates, and the bound", "lr linear_regression.toml"),
    "backprop-digits_cnn": ("Errors of the gradient by tensor", "backprop digits_cnn.toml"),
    "gradients-digits_lstm": ("Layers and what passes through them", "gradients digits_lstm.toml"),
    "jacobian-layers": ("Jacobian norms over the samples, and χ by depth", "jacobian digits_cnn.toml --per-layer"),
    "jacobian-lstm": ("How far a recurrent layer remembers", "jacobian digits_lstm.toml"),
    "compare-mlp": ("The loss on the way between two checkpoints", "compare a.safetensors b.safetensors"),
    "track-mlp": ("Sharpness, trace and loss over training", "track run.toml checkpoints/"),
}  # fmt: skip


def picture(name: str) -> bytes:
    """The pictures of a recorded answer, as SVG."""
    from tests.report.screens import recorded

    envelope = recorded(name)
    blocks = get(envelope.command).view(envelope.result)
    return figure.render(f"curvcli {envelope.command}", blocks, "svg")


def page() -> str:
    """The text of the gallery."""
    lines = [
        "# Gallery", "",
        "A picture for every command, the same on the terminal, on the page and in files (`-o x.png`, `.svg`, `.pdf`).",
        "Drawn by `python docs/gallery.py` from the answers that the tests hold every command against.", "",
    ]  # fmt: skip
    for name, (seen, command) in SHOWN.items():
        lines += [f"## {seen}", "", f"`curvcli {command}`", "", f"![{seen}](gallery/{name}.svg)", ""]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Write the page and its pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name in SHOWN:
        (FOLDER / f"{name}.svg").write_bytes(picture(name))
    (ROOT / "docs" / "gallery.md").write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
