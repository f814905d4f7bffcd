"""A checkpoint keeps what its data was fitted to, whatever config is given with it and whatever files hold now."""

import csv
import random
from pathlib import Path

import pytest
import yaml

QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture
def table(here: Path) -> Path:
    """Two hundred rows whose class is the sign of a sum."""
    generator = random.Random(0)
    numbers = [(generator.gauss(0, 1), generator.gauss(0, 1)) for _ in range(200)]
    rows = [f"{a:.3f},{b:.3f},{'yes' if a + b > 0 else 'no'}\n" for a, b in numbers]
    (here / "rows.csv").write_text("a,b,y\n" + "".join(rows))
    (here / "new.csv").write_text("a,b\n0.5,0.25\n-1,\n")
    return here


def predictions(name: str) -> list[dict[str, str]]:
    with open(name, newline="") as file:
        return list(csv.DictReader(file))


def test_tables_are_encoded_as_in_training(zoo, table):
    data = ["--data", "Tabular", "--data.file", "rows.csv", "--data.target", "y"]
    model = ["--model", "MLPClassifier", "--model.hidden", "[4]"]
    code, _, err = zoo("fit", *model, *data, "--trainer.max_epochs", 1, *QUIET, "--run_dir", "run")
    assert code == 0, err
    best = "run/checkpoints/last.ckpt"
    new = ["--data.predict_file", "new.csv", *QUIET]
    assert zoo("predict", "--ckpt_path", best, *new, "--out", "before.csv")[0] == 0
    before = predictions("before.csv")
    assert [list(row) for row in before] == [["row", "class", "y", "probability"]] * 2
    assert [row["row"] for row in before] == ["2", "3"]

    # The table grows, by rows far away, and by a cell that is missing.
    with open("rows.csv", "a") as file:
        file.write("".join(f"{20 + i % 7},{'' if i == 0 else 15 + i % 5},yes\n" for i in range(100)))
    for config in ([], ["-c", "run/config.yaml"]):
        code, _, err = zoo("predict", *config, "--ckpt_path", best, *new, "--out", "after.csv")
        assert code == 0, err
        assert predictions("after.csv") == before
    code, _, err = zoo("fit", "--resume", "run", "--trainer.max_epochs", 2, "--data_changed", "ok")
    assert code == 0, err
    assert "rows.csv has 100 rows more than the checkpoint saw" in err
    assert yaml.safe_load(Path("run/config.yaml").read_text())["data"]["init_args"]["fitted"] is None

    # It is gone.
    Path("rows.csv").unlink()
    code, _, err = zoo("predict", "--ckpt_path", best, *new, "--out", "gone.csv")
    assert code == 0, err
    assert len(predictions("gone.csv")) == 2
    (table / "unlabelled.csv").write_text((table / "new.csv").read_text())
    code, _, err = zoo("predict", "--ckpt_path", best, "--data.file", "unlabelled.csv", *QUIET, "--out", "file.csv")
    assert code == 0, err
    assert predictions("file.csv") == predictions("gone.csv")
