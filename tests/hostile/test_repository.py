"""A working directory whose ``.git`` would run programs, or whose references lead elsewhere."""

import os
import stat
import subprocess

import pytest

from zoo.runs import git
from zoo.runs.run_folder import environment


def run_git(folder, *args):
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *args]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / ".gitattributes").write_text("* filter=evil\n")
    run_git(tmp_path, "init", "-q")
    run_git(tmp_path, "add", ".")
    run_git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_programs_that_a_repository_configures_are_not_run(repository):
    script = repository / "evil.sh"
    script.write_text("#!/bin/sh\ntouch ran\ncat\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    for key in ("core.fsmonitor", "filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "core.sshCommand",
                "core.pager", "diff.external", "core.editor", "credential.helper"):  # fmt: skip
        run_git(repository, "config", key, str(script))
    for hook in ("post-index-change", "fsmonitor-watchman", "pre-commit", "reference-transaction"):
        path = repository / ".git" / "hooks" / hook
        path.write_text(script.read_text())
        path.chmod(0o755)
    (repository / "a.txt").write_text("changed")
    os.utime(repository / ".gitattributes", (1, 1))
    entry = environment("zoo fit", 0, "1 x CPU")
    assert len(entry["git_commit"]) == 40
    assert entry["git_dirty"] is True
    assert not (repository / "ran").exists()


HEADS = {
    "a path that leaves the folder": "ref: refs/heads/../../../../outside\n",
    "an absolute path": "ref: /etc/passwd\n",
    "a reference to itself": "ref: HEAD\n",
    "text": "\x1b[2J\n",
    "nothing": "",
    "a long line": "ref: refs/heads/" + "a" * 100_000,
    "null bytes": "ref: refs/heads/\0\n",
}


@pytest.mark.parametrize("case", HEADS)
def test_head_that_names_no_commit(case, repository):
    (repository / ".git" / "HEAD").write_text(HEADS[case])
    assert git.commit(git.find(repository)) is None
    assert environment("zoo fit", 0, "1 x CPU")["git_commit"] is None


@pytest.mark.parametrize(
    "index",
    [b"", b"DIRC", b"DIRC\0\0\0\2\xff\xff\xff\xff", b"DIRC\0\0\0\4\0\0\0\1" + b"\xff" * 70, b"\0" * 1000],
)
def test_broken_index(index, repository):
    (repository / ".git" / "index").write_bytes(index)
    entry = environment("zoo fit", 0, "1 x CPU")
    assert len(entry["git_commit"]) == 40
    assert entry["git_dirty"] is None


def test_tracked_names_that_leave_the_folder_and_files_that_never_end(repository, nothing_happens):
    index = (repository / ".git" / "index").read_bytes()
    (repository / ".git" / "index").write_bytes(index.replace(b"a.txt", b"../ab"))
    assert environment("zoo fit", 0, "1 x CPU")["git_dirty"] in (None, True, False)
    (repository / ".git" / "index").write_bytes(index)
    (repository / "a.txt").unlink()
    os.mkfifo(repository / "a.txt")
    assert environment("zoo fit", 0, "1 x CPU")["git_dirty"] is True
    (repository / ".git" / "refs" / "heads").joinpath(run_git(repository, "branch", "--show-current")).unlink()
    assert environment("zoo fit", 0, "1 x CPU")["git_commit"] is None


def test_git_file_that_leads_elsewhere(tmp_path, nothing_happens):
    (tmp_path / ".git").write_text(f"gitdir: {nothing_happens}\n")
    assert environment("zoo fit", 0, "1 x CPU")["git_commit"] is None
