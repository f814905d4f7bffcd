"""Two processes do what one does with the same global batch."""

import csv

import pytest
import torch

DDP = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]


def table(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def weights(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("windows", [1, 4])
def test_ddp_equals_one_process(zoo_process, here, windows):
    common = ["fit", "-c", "configs/mlp_digits.yaml", "--trainer.precision", "64-true", "--trainer.max_epochs", "2",
              "--trainer.gradient_clip_val", "1.0", "--model.dropout", "0",
              "--trainer.accumulate_grad_batches", windows]  # fmt: skip
    one = zoo_process(*common, "--run_dir", "one", "--data.batch_size", "64")
    two = zoo_process(*common, "--run_dir", "two", "--data.batch_size", "32", *DDP)
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    a, b = weights(here / "one/checkpoints/last.ckpt"), weights(here / "two/checkpoints/last.ckpt")
    assert a.keys() == b.keys()
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-10

    rows = [table(here / run / "metrics.csv") for run in ("one", "two")]
    for single, double in zip(*rows, strict=True):
        assert single.keys() == double.keys()
        for key in single:
            if single[key]:
                assert float(single[key]) == pytest.approx(float(double[key]), rel=1e-6), key


def test_ddp_predictions_come_in_the_order_of_the_data(zoo_process, here):
    assert (
        zoo_process("fit", "-c", "configs/mlp_quadrants.yaml", "--trainer.max_epochs", "2", "--run_dir", "r").returncode
        == 0
    )
    for name, extra in (("one", []), ("two", DDP)):
        done = zoo_process("predict", "--ckpt_path", "r/checkpoints/last.ckpt", "--out", f"{name}.csv",
                           "--data.samples", "1010", "--data.eval_batch_size", "9", *extra)  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = (table(here / f"{n}.csv") for n in ("one", "two"))
    assert f"{len(one)} predictions in two.csv" in done.stdout
    assert [r["class"] for r in one] == [r["class"] for r in two]
    assert sorted(p.name for p in here.iterdir() if p.name.startswith(".")) == [], "no part is left"
