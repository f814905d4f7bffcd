"""A run folder belongs to one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.errors import UserError
from zoo.runs.lock import NAME, lock, unlock

# A second process, without torch: it prints the error, or takes the lock and ends.
PROGRAM = """
import sys
from pathlib import Path
from zoo.runs.lock import lock
try:
    lock(Path(sys.argv[1]))
    print("locked")
except ValueError as error:
    print(error)
"""


def other_process(folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_second_process_is_refused_in_one_line_until_the_first_is_done(tmp_path):
    lock(tmp_path)
    lock(tmp_path)  # the same process may ask again
    refusal = other_process(tmp_path)
    assert refusal.startswith(f"another process is training in {tmp_path} (process {os.getpid()} on ")
    assert "\n" not in refusal
    unlock(tmp_path)
    assert not (tmp_path / NAME).exists()
    assert other_process(tmp_path) == "locked"


def test_a_process_that_ends_leaves_no_lock_but_its_name(tmp_path):
    assert other_process(tmp_path) == "locked"
    assert (tmp_path / NAME).exists()
    lock(tmp_path)
    unlock(tmp_path)


def test_a_fork_does_not_have_the_lock(tmp_path):
    lock(tmp_path)
    pid = os.fork()
    if pid == 0:
        try:
            lock(tmp_path)
            os._exit(0)
        except UserError:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    unlock(tmp_path)


def test_no_link_is_followed(tmp_path):
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="cannot write to the run folder"):
        lock(tmp_path / "run")
    assert (tmp_path / "victim").read_text() == "untouched"
