"""Files are written whole or not at all, on a full disk, through no link, and leave nothing behind."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from zoo import files
from zoo.errors import UserError
from zoo.files import atomic_file, atomic_folder, open_without_links, remove_abandoned, temporary_path, write_text


def test_a_file_is_replaced_and_nothing_is_left(tmp_path):
    write_text(tmp_path / "sub/a.txt", "one")
    write_text(tmp_path / "sub/a.txt", "two")
    assert [path.read_text() for path in (tmp_path / "sub").iterdir()] == ["two"]


def test_an_error_leaves_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def half() -> None:
        with atomic_file(tmp_path / "a.txt") as new:
            new.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_names_cannot_be_guessed_and_planted_links_are_not_followed(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    assert temporary_path(path) != temporary_path(path)
    (tmp_path / "victim").write_text("untouched")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)  # somebody guesses right
    temporary_path(path).symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        write_text(path, "new")
    assert (tmp_path / "victim").read_text() == "untouched"


def test_a_link_in_the_place_itself_is_replaced_not_followed(tmp_path):
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "a.txt").symlink_to(tmp_path / "victim")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "victim").read_text() == "untouched"
    assert not (tmp_path / "a.txt").is_symlink()
    (tmp_path / "b.txt").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"), open_without_links(tmp_path / "b.txt", "r+"):
        pass


def test_what_a_killed_process_left_is_removed(tmp_path):
    program = f"""
import os
from zoo.files import atomic_file, atomic_folder
with atomic_folder("{tmp_path}/folder") as folder, atomic_file("{tmp_path}/a.txt") as new:
    (folder / "x").touch()
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    running = temporary_path(tmp_path / "a.txt")  # of this process, which runs
    other_host = tmp_path / f".a.txt.new-elsewhere-1-{'0' * 16}"
    similar = tmp_path / ".a.txt.new-notes"
    for path in (running, other_host, similar):
        path.touch()
    remove_abandoned(tmp_path / "a.txt")
    remove_abandoned(tmp_path / "folder")
    assert set(tmp_path.iterdir()) == {running, other_host, similar}


WRITERS = {
    "text": lambda path: path.write_text("x" * 100_000),
    "torch": lambda path: torch.save(torch.zeros(100_000), path),
    "safetensors": lambda path: save_file({"a": torch.zeros(100_000)}, path),
}


@pytest.fixture
def small_disk():
    """No file may grow beyond 10 kB, which is how a full disk looks to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_one_line_and_the_old_file_is_there(kind, tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(UserError, match=r"^cannot write .*/a: [^\n]+$"), atomic_file(path) as new:
        WRITERS[kind](new)
    with pytest.raises(UserError, match=r"^cannot write .*/b: [^\n]+$"), atomic_folder(tmp_path / "b") as folder:
        WRITERS[kind](folder / "c")
    assert [item.read_text() for item in tmp_path.iterdir()] == ["old"]


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="there is no read-only file system at hand")
def test_a_read_only_disk_is_one_line():
    with pytest.raises(UserError, match=r"^cannot write /sys/kernel/a: "), atomic_file("/sys/kernel/a"):
        pass


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a"):
        os.stat(tmp_path / "absent")
    with pytest.raises(RuntimeError, match="something else"), atomic_file(tmp_path / "a"):
        raise RuntimeError("something else")
