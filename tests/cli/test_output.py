"""Where an answer goes, it arrives whole or the command says so; exit code 1 means a violation and nothing else."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from curvcli.cli import streams
from curvcli.files import Replacement, write_whole
from tests.oracles.program import ROOT, invoke

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command line as a user types it; ``curvcli`` is this one, and the exit code its own."""
    program = f"{sys.executable} -m curvcli"
    return subprocess.run(
        ["bash", "-c", command.replace("curvcli", program)],
        capture_output=True, cwd=ROOT, check=False, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


def test_what_is_no_regular_file_is_written_into(weights: Path, tmp_path: Path) -> None:
    """A pipe that is named by -o gets the answer and stays a pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    done = invoke("info", str(weights), "--format", "json", "-o", str(pipe))
    reader.join(30)
    assert done.exit_code == 0
    assert json.loads(read[0])["command"] == "info"
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_stays_a_device(weights: Path) -> None:
    """-o /dev/null replaces nothing, whoever runs it."""
    before = os.stat("/dev/null")
    assert invoke("info", str(weights), "-o", "/dev/null").exit_code == 0
    assert os.stat("/dev/null").st_ino == before.st_ino
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_links_are_followed_and_modes_kept(weights: Path, tmp_path: Path) -> None:
    """The file behind a link is replaced, with the mode that it had."""
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("before")
    real.chmod(0o600)
    link.symlink_to(real)
    assert invoke("info", str(weights), "-o", str(link)).exit_code == 0
    assert link.is_symlink()
    assert json.loads(real.read_text())["command"] == "info"
    assert stat.S_IMODE(real.stat().st_mode) == 0o600


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    """The temporary file is gone, and another one of the usual name is not touched."""
    place, other = tmp_path / "x", tmp_path / "x.tmp"
    place.write_bytes(b"before")
    other.write_bytes(b"another program's")
    made = Replacement(place)
    made.file.write(b"half")
    made.discard()
    with pytest.raises(TypeError):
        write_whole(place, "no bytes")  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "x.tmp"]
    assert place.read_bytes() == b"before"
    write_whole(place, b"after")
    assert place.read_bytes() == b"after"
    assert other.read_bytes() == b"another program's"


@needs_full
@pytest.mark.parametrize("where", ["> /dev/full", "-o /dev/full", ">&-"])
@pytest.mark.parametrize("command", ["check", "info"])
def test_an_answer_that_cannot_be_written_is_an_output_error(
    command: str, where: str, weights: Path
) -> None:
    """Exit code 2, with a sentence: not 1, which would be a violation."""
    done = shell(f"curvcli {command} {weights} {where}")
    assert done.returncode == 2
    assert b"cannot be written" in done.stderr
    assert b"Traceback" not in done.stderr


@needs_full
@pytest.mark.parametrize(
    "where", ["2>&-", "2> /dev/full", "2>&- > /dev/null", "< /dev/null | true"]
)
def test_messages_that_cannot_be_shown_do_not_change_the_end(where: str, weights: Path) -> None:
    """A check that passes ends with 0 though stderr is closed or full, or nobody reads on."""
    done = shell(f"curvcli check {weights} {where}; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    missing = shell(f"curvcli check {weights}.none {where}; exit ${{PIPESTATUS[0]}}")
    assert missing.returncode == 2


@needs_full
@pytest.mark.parametrize("command", ["--help", "--version", "schema info", "info --help"])
@pytest.mark.parametrize("where", ["> /dev/full", "| true"])
def test_help_that_cannot_be_written(command: str, where: str) -> None:
    """An output error, or nothing at all where the reader has gone."""
    done = shell(f"curvcli {command} {where}; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == (2 if "full" in where else 0)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("form", ["table", "json", "markdown"])
def test_an_encoding_that_lacks_a_character_gets_an_escape(
    encoding: str, form: str, tmp_path: Path
) -> None:
    """Names that the terminal's encoding does not have, and names that are no Unicode at all."""
    torch.save({"\u03bb.\u4e2d": torch.ones(2)}, tmp_path / "m.pt")
    odd = os.fsencode(tmp_path) + b"/\xff.pt"
    (tmp_path / "m.pt").rename(os.fsdecode(odd))
    done = subprocess.run(
        [sys.executable, "-m", "curvcli", "check" if form == "table" else "info", odd, "--format", form],
        capture_output=True, cwd=ROOT, check=False, timeout=120, env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    if form != "json":
        said = done.stdout.decode(encoding)
        assert ("✓" in said) == (encoding == "utf-8")
        assert ("OK" in said) == (encoding != "utf-8")
        assert "2713" not in said
    written = tmp_path / f"out.{form}"
    again = invoke("info", os.fsdecode(odd), "--format", form, "-o", str(written))
    assert again.exit_code == 0
    assert written.read_text("utf-8")


@pytest.mark.parametrize(("columns", "lines"), [(40, 2), (0, 1)])
def test_messages_are_cut_between_words(
    columns: int, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal no name is broken over two lines; one that does not tell its width has 80; a pipe gets one line."""
    note = "note: the weights were found under 'model_state_dict'"
    assert streams.fitted(note) == f"{note}\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2)
    size = os.terminal_size((columns, 24))
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: size)
    shown = streams.fitted(note).splitlines()
    assert len(shown) == lines
    assert " ".join(shown) == note
    assert all(len(line) <= (columns or 80) for line in shown)
    long = "n" * 50
    assert long in streams.fitted(f"note: {long}")
