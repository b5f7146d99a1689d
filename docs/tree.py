"""Prints the folders of the package with a line for each, from the docstrings of their ``__init__.py``."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent


def tree() -> list[tuple[str, str]]:
    """(folder, what it is for), in the order of their names."""
    found = []
    for init in sorted((ROOT / "curvcli").rglob("__init__.py")):
        purpose = (ast.get_docstring(ast.parse(init.read_text("utf-8"))) or "").split("\n")[0]
        found.append((f"{init.parent.relative_to(ROOT).as_posix()}/", purpose))
    return found


def drawing() -> str:
    """The tree as text."""
    lines = []
    for folder, purpose in tree():
        depth = folder.count("/") - 1
        name = "  " * depth + folder.rstrip("/").rpartition("/")[2] + "/"
        lines.append(f"{name:<24}{purpose}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(drawing())
