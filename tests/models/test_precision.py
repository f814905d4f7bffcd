"""Half the bits in training: what the benchmark of the training step gains costs no accuracy."""

import re
import statistics

import pytest

FAST = ["--trainer.precision", "bf16-mixed", "--model.channels_last", "true"]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["small_cnn_digits", "vit_digits"])
def test_bf16_is_as_accurate_as_float32(config, zoo):
    """The mean over seeds is no lower than float32's by more than what float32's own seeds differ by."""
    accuracies = {"float32": [], "bf16": []}
    for kind, args in (("float32", []), ("bf16", FAST)):
        for seed in range(3):
            run = f"{kind}_{seed}"
            code, _, err = zoo(
                "fit", "-c", f"configs/{config}.yaml", "--seed_everything", seed, "--run_dir", run, *args
            )
            assert (code, err) == (0, "")
            _, out, _ = zoo("test", "--ckpt_path", f"{run}/checkpoints/last.ckpt", "--plots", "false")
            accuracies[kind].append(float(re.search(r"test/accuracy\s+([\d.]+)", out)[1]))
    print(config, accuracies)
    spread = max(accuracies["float32"]) - min(accuracies["float32"])
    assert statistics.mean(accuracies["bf16"]) >= statistics.mean(accuracies["float32"]) - max(spread, 1 / 270)
