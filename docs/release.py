"""Prints what CHANGELOG.md says of a tagged version: python docs/release.py v1.2.3."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def notes(tag: str, version: str, changelog: str) -> str:
    """The section of a version.

    Raises:
        SystemExit: the tag is not that of the version, or the changelog has no section for it.
    """
    if tag != f"v{version}":
        raise SystemExit(f"the tag is {tag}, and curvcli/__init__.py says {version}")
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    found = next((s for s in sections if s.split()[0].strip("[]") == version), None)
    if found is None:
        raise SystemExit(f"CHANGELOG.md has no section '## {version}': rename 'Unreleased'")
    return found.partition("\n")[2].strip()


def main() -> None:
    """Print them."""
    source = (ROOT / "curvcli" / "__init__.py").read_text("utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    print(notes(sys.argv[1], version, (ROOT / "CHANGELOG.md").read_text("utf-8")))


if __name__ == "__main__":
    main()
