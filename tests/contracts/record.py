"""Writes the recorded answers again: PYTHONHASHSEED=0 python -m tests.contracts.record [FOLDER].

Without a folder, what their tables look like is written again as well.
"""

import gzip
import json
import sys
import tempfile
from pathlib import Path

import torch

from tests.contracts.cases import ANSWERS, CASES, answer_of, workplace
from tests.report import screens


def main() -> None:
    """Run every case and write its answer."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ANSWERS
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, workplace(Path(place)):
        for name, arguments in CASES.items():
            text = json.dumps(answer_of(arguments), separators=(",", ":"))
            # Without a time stamp: the same answers make the same file.
            (folder / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
            print(name, flush=True)
    if folder == ANSWERS:
        screens.main()


if __name__ == "__main__":
    main()
