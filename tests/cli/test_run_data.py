"""A run is resumed on the data that it was trained on, from whichever folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from zoo.runs import fingerprint

FIT = ["fit", "--model", "MLPClassifier", "--data", "Tabular", "--data.file", "rows.csv", "--data.target", "y"]
ROWS = [f"{i % 7},{i % 5},{'ab'[i % 2]}" for i in range(60)]


def write(rows: list[str], path: str = "rows.csv") -> None:
    Path(path).write_text("\n".join(["u,v,y", *rows]) + "\n")


@pytest.fixture
def trained(zoo, here) -> Path:
    write(ROWS)
    code, _, err = zoo(*FIT, "--trainer.max_epochs", 1, "--run_dir", "a")
    assert code == 0, err
    return here


CHANGES = {
    "changed": ([*ROWS[:30], "3,3,b", *ROWS[31:]], "has other content in as many rows"),
    "added": ([*ROWS, "1,1,a"], "has 62 rows instead of 61"),
    "removed": (ROWS[1:], "has 60 rows instead of 61"),
    "shuffled": (ROWS[::-1], "has other content in as many rows"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_other_data_stop_a_resume_in_one_line(kind, zoo, trained):
    rows, text = CHANGES[kind]
    write(rows)
    before = Path("a/checkpoints/last.ckpt").read_bytes()
    resume = ["fit", "--resume", "a", "--trainer.max_epochs", 2]
    code, _, err = zoo(*resume)
    assert (code, err.count("\n")) == (2, 1)
    expected = f"the data are not those of the training: --data.file rows.csv {text}"
    assert err == f"zoo: error: {expected}; to go on with them: --data_changed ok\n"
    assert Path("a/checkpoints/last.ckpt").read_bytes() == before
    code, _, err = zoo(*resume, "--data_changed", "ok")
    assert (code, expected in err) == (0, True), err
    assert "data_changed" not in Path("a/config.yaml").read_text()
    assert zoo("fit", "--resume", "a", "--trainer.max_epochs", 3)[0] == 0, "the data of the last training count"


def test_checkpoint_and_run_hold_the_fingerprint(trained):
    of_run = json.loads(Path("a/environment.json").read_text())
    of_checkpoint = torch.load("a/checkpoints/last.ckpt", weights_only=True)["data_fingerprint"]
    assert of_run["data"] == of_checkpoint
    assert of_checkpoint["file"]["rows"] == 61
    assert of_checkpoint["file"]["bytes"] == Path("rows.csv").stat().st_size
    assert of_run["samples"] == {"train": 42, "val": 10}
    assert of_run["directory"] == os.getcwd()


def test_a_test_says_which_data_it_sees(zoo, trained):
    command = ["test", "--ckpt_path", "a/checkpoints/last.ckpt"]
    assert "data: rows.csv, 61 rows, as in training\n" in zoo(*command)[1]
    write(ROWS[:40])
    out = zoo(*command)[1]
    assert "data: rows.csv, 41 rows, not as in training: it has 41 rows instead of 61\n" in out


def test_from_another_folder_a_run_finds_its_files(zoo, trained, monkeypatch):
    elsewhere = trained / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    code, out, err = zoo("test", "--ckpt_path", "../a/checkpoints/last.ckpt")
    assert code == 0, err
    assert f"data.file: {trained}/rows.csv, from the folder in which the run was trained" in err
    assert f"data: {trained}/rows.csv, 61 rows, as in training" in out
    shutil.copy(trained / "rows.csv", "rows.csv")
    out, err = zoo("test", "--ckpt_path", "../a/checkpoints/last.ckpt")[1:]
    assert f"rows.csv of this folder; the run was trained in {trained}, which has another one" in err
    assert "data: rows.csv, 61 rows, as in training" in out
    Path("rows.csv").unlink()
    code, _, err = zoo("fit", "--resume", "../a", "--trainer.max_epochs", 2)
    assert code == 0, err


# The fingerprint itself -----------------------------------------------------------------------------------------------


def test_what_looks_like_a_path():
    arguments = {
        "file": "rows",
        "name": "iris",
        "target": "price.usd/night",
        "captions": "captions.csv",
        "cache_dir": "cache",
        "predict_file": "new.csv",
        "inner": {"class_path": "mine.Data", "init_args": {"root": Path("images"), "paths": ["a", "b"]}},
        "url": "https://elsewhere/rows.csv",
    }
    expected = {
        ("file", "rows"),
        ("target", "price.usd/night"),
        ("captions", "captions.csv"),
        ("inner.root", "images"),
    }
    assert set(fingerprint.named_paths(arguments)) == expected
    assert set(fingerprint.named_paths({"path": ["a", "b"]})) == {("path", "a"), ("path", "b")}


def test_a_folder_of_files(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    first = fingerprint.of_folder(tmp_path)
    assert (first["files"], first["bytes"]) == (3, 21)
    (tmp_path / "b/1.png").write_text("b/2.png")
    changed = fingerprint.of_folder(tmp_path)
    assert changed["digest"] != first["digest"]
    (tmp_path / "b/1.png").rename(tmp_path / "b/3.png")
    assert fingerprint.of_folder(tmp_path)["digest"] != changed["digest"]
    (tmp_path / "b/3.png").unlink()
    assert fingerprint.change(first, fingerprint.of_folder(tmp_path)) == "has 2 files instead of 3"


def test_a_large_file_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "WHOLE_FILE", 1000)
    monkeypatch.setattr(fingerprint, "SAMPLE_SIZE", 100)
    monkeypatch.setattr(fingerprint, "SAMPLES", 5)
    content = bytearray(10_000)
    path = tmp_path / "a.csv"
    digests = set()
    for place in (None, 0, 9999, 2500, 50):
        if place is not None:
            content[place] += 1
        path.write_bytes(content)
        digests.add(fingerprint.of_file(path)["digest"])
    path.write_bytes(content[:-1])
    digests.add(fingerprint.of_file(path)["digest"])
    assert len(digests) == 6
