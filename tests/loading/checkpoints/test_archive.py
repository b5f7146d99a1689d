"""Archives and names that attack do no harm: bombs, links, ways out, names that would drive a terminal or a page."""

import io
import os
import stat
import struct
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from curvcli.cli.main import make_app
from curvcli.errors import CheckpointError, DataError
from curvcli.loading.checkpoints import archive
from curvcli.loading.checkpoints.formats import open_checkpoint
from curvcli.loading.data.batches import read_batches


def refused(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(path)
    assert caught.value.hint


def test_a_zip_bomb_stops_at_the_stated_size(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    block = bytes(1 << 24)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as bomb,
        bomb.open("m/data.pkl", "w", force_zip64=True) as entry,
    ):
        for _ in range((archive.EXPANSION_BYTES >> 24) + 1):
            entry.write(block)
    assert path.stat().st_size < archive.EXPANSION_BYTES / 500
    refused(path, f"{archive.EXPANSION_BYTES} are allowed")
    path.rename(tmp_path / "bomb.npz")
    with pytest.raises(DataError, match="would expand"):
        read_batches(str(tmp_path / "bomb.npz"))


def test_entries_that_overlap_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("a", bytes(10_000))
    raw = buffer.getvalue()
    start = raw.index(b"PK\x01\x02")
    end = raw.index(b"PK\x05\x06")
    listed = b"".join(raw[start:end].replace(b"a", bytes([97 + i])) for i in range(20))
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 20, 20, len(listed), start, 0)
    (tmp_path / "quine.pt").write_bytes(raw[:start] + listed + tail)
    refused(tmp_path / "quine.pt", "overlap")


@pytest.mark.parametrize("name", ["../../etc/x", "/etc/x", "m/../../x", "..\\x"])
def test_entries_that_leave_the_archive_are_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as made:
        made.writestr(name, b"x")
    refused(tmp_path / "m.pt", "outside the archive")


def test_links_and_doubles_in_an_archive_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as made:
        link = zipfile.ZipInfo("m/data.pkl")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(link, "/etc/passwd")
    refused(tmp_path / "m.pt", "symbolic link")
    with zipfile.ZipFile(tmp_path / "d.pt", "w") as made:
        made.writestr("m/data.pkl", b"a")
        with pytest.warns(UserWarning, match="Duplicate"):
            made.writestr("m/data.pkl", b"b")
    refused(tmp_path / "d.pt", "two entries")


def test_a_shard_that_links_elsewhere_is_refused_and_the_cache_is_not(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "secret" / "s.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = '{"weight_map": {"a": "s.safetensors"}}'
    (folder / "m.safetensors.index.json").write_text(index)
    (folder / "s.safetensors").symlink_to(tmp_path / "secret" / "s.safetensors")
    refused(folder, "a link that leads outside")
    # The Hugging Face cache is made of links: snapshots/COMMIT/name -> ../../blobs/HASH.
    repository = tmp_path / "models--a--b"
    snapshot, blobs = repository / "snapshots" / "c0ffee", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"a": torch.ones(2)}, blobs / "1")
    (blobs / "2").write_text(index)
    (snapshot / "s.safetensors").symlink_to(blobs / "1")
    (snapshot / "m.safetensors.index.json").symlink_to(blobs / "2")
    assert [t.name for t in open_checkpoint(snapshot).tensors] == ["a"]


def test_a_tensor_that_repeats_one_number_a_trillion_times(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(1 << 20, 1 << 20)}, tmp_path / "m.pt")
    assert (tmp_path / "m.pt").stat().st_size < 10_000
    refused(tmp_path / "m.pt", "would take")


def test_an_array_header_that_promises_too_much(tmp_path: Path) -> None:
    inner = io.BytesIO()
    np.save(inner, np.ones(3))
    lying = inner.getvalue().replace(b"(3,), }" + b" " * 10, b"(30000000000,), }")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as made:
        made.writestr("x.npy", lying)
    with pytest.raises(DataError, match="promises 240000000000 bytes"):
        read_batches(str(tmp_path / "d.npz"))


def test_a_header_beyond_the_stated_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000) + b"{")
        file.truncate(200_000_100)  # sparse: takes no room
    refused(path, "header would be")
    index = tmp_path / "i.safetensors.index.json"
    with index.open("wb") as file:
        file.write(b"{")
        file.truncate(archive.JSON_BYTES + 1)
    refused(index, "larger than")


NAME = "[red]a[/red]\x1b]0;owned\x07\x1b[2J<script>alert(1)</script>|`x`*b*\u202e.weight"


@pytest.mark.parametrize("form", ["table", "markdown", "html", "json"])
def test_names_are_shown_and_not_interpreted(form: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({NAME: torch.ones(2)}, path, {"<b>key</b>\x1b[31m": "[bold]value[/bold]\x1b[0m"})
    output = (
        CliRunner().invoke(make_app(), ["info", str(path), "--format", form, "--static"]).stdout
    )
    assert "\x1b" not in output
    assert "\x07" not in output
    if form == "json":
        import json

        assert json.loads(output)["result"]["tensors"][0]["name"] == NAME
        return
    assert "\u202e" not in output
    if form == "table":
        assert "[red]a" in output.replace("\n", "")
    if form == "html":
        assert "<script" not in output
        assert "&lt;script" in output
        assert "<b>" not in output
    if form == "markdown":
        assert "<script" not in output.replace("\\<script", "")
        assert "\\[red\\]" in output


def test_progress_does_not_interpret_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from curvcli.analyses.shared.journal import Stage
    from curvcli.cli.progress import ProgressLine

    seen: list[object] = []
    progress = ProgressLine(False)
    progress._enabled = True
    progress._live = types.SimpleNamespace(update=seen.append)  # type: ignore[assignment]
    progress(Stage("tensors", 0, 1, NAME))
    assert str(seen[0]).startswith("tensors 0 of about 1, [red]a[/red]\\x1b]0;owned")


def test_an_error_and_a_target_file_do_not_interpret_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tomllib

    monkeypatch.chdir(tmp_path)
    odd = 'we"ird\x1b[31m\n[x]'
    os.mkdir(odd)
    save_file({"0.weight": torch.ones(3, 2), "0.bias": torch.ones(3)}, f"{odd}/m.safetensors")
    runner = CliRunner()
    done = runner.invoke(make_app(), ["init", f"{odd}/m.safetensors", "--to", "t.toml"])
    assert done.exit_code == 0, done.stderr
    assert tomllib.loads(Path("t.toml").read_text())["checkpoint"] == f"{odd}/m.safetensors"
    failed = runner.invoke(make_app(), ["info", f"{odd}/none.safetensors"])
    assert failed.exit_code == 2
    assert "\x1b" not in failed.stderr
