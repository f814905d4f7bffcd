"""The commit and whether tracked files differ from it: as git says, without running git."""

import os
import subprocess

import pytest

from zoo.runs import git


def run(folder, *args):
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *args]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(params=[("sha1", "2"), ("sha256", "4")], ids=["sha1, index 2", "sha256, index 4"])
def repository(request, tmp_path):
    hash_name, version = request.param
    folder = tmp_path / "project"
    folder.mkdir()
    run(folder, "init", "-q", f"--object-format={hash_name}")
    run(folder, "config", "index.version", version)
    for name in ("a", "b/c.txt", "b/ccccc.py", "z"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name * 50)
    os.symlink("a", folder / "link")
    assert git.commit(git.find(folder)) is None  # nothing is committed yet
    run(folder, "add", ".")
    run(folder, "commit", "-qm", "first")
    return folder


def state(folder):
    found = git.find(folder)
    commit = git.commit(found)
    assert commit == run(folder, "rev-parse", "HEAD")
    return git.has_changes(found, commit)


def test_changes_of_tracked_files(repository):
    a = repository / "a"
    assert state(repository / "b") is False  # found from a folder within
    os.utime(a, (1, 1))
    assert state(repository) is False  # another time, the same content
    a.write_text("b" * a.stat().st_size)
    assert state(repository) is True
    a.write_text("a" * 50)
    assert state(repository) is False
    (repository / "z").unlink()
    assert state(repository) is True
    (repository / "z").write_text("z" * 50)
    (repository / "untracked").write_text("1")
    assert state(repository) is False
    run(repository, "add", "untracked")
    assert state(repository) is True
    run(repository, "commit", "-qm", "second")
    assert state(repository) is False


def test_packed_detached_and_in_another_working_tree(repository, tmp_path):
    run(repository, "gc", "-q")
    run(repository, "pack-refs", "--all")
    assert state(repository) is False
    other = tmp_path / "other"
    run(repository, "worktree", "add", "-q", str(other))
    assert state(other) is False
    (other / "a").write_text("changed")
    assert (state(other), state(repository)) == (True, False)
    run(repository, "checkout", "-q", "--detach")
    assert state(repository) is False


def test_outside_of_a_repository(tmp_path):
    assert git.find(tmp_path) is None
