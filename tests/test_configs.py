"""Every config through the true command line: a few steps of each, and, marked slow, to the result it states.

The few steps are marked slow, too, for all but one config of each model class: the one that .ci/matrix tries.

The first line of a config says what it is and ends in its result, such as ``-> test/accuracy >= 0.96``.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

import zoo.data
from tests import fake_data
from tests.conftest import CONFIGS, load_support
from zoo.data.images.downloadable import DownloadableImages

# What a config needs of an earlier run: another config's checkpoint, by the argument that it leaves at null for it.
TEACHERS = {"teacher_checkpoint": "small_cnn_digits", "weights": "resnet_letters", "autoencoder": "autoencoder_digits"}
SHORT = ["--trainer.max_epochs", 1, "--trainer.limit_train_batches", 2, "--trainer.limit_val_batches", 1]
RESULT = re.compile(r"\b((?:test|val)/[\w@]+) (>=|<=) (-?[\d.]*\d)")
MEASURED = re.compile(r"^\s+((?:test|val)/[\w@]+)\s+(\S+)$", re.MULTILINE)
# How its samples are measured, in the comments of a config.
OPTION = re.compile(r"(--generation_metrics\.\w+) ([^\s`]+)")

PORTABLE = load_support().portable()


def first_line(config: Path) -> str:
    return config.read_text().splitlines()[0]


def stated(config: Path) -> list[tuple[str, str, float]]:
    """The results in the first line: metric, direction, bound."""
    return [(metric, sign, float(bound)) for metric, sign, bound in RESULT.findall(first_line(config))]


def fake_writer(config: Path) -> Callable[..., Path] | None:
    """Where a config's dataset has to be downloaded first: what writes a few samples in its format, else None."""
    data = yaml.safe_load(config.read_text())["data"]
    name = data if isinstance(data, str) else data["class_path"]
    if not issubclass(getattr(zoo.data, name), DownloadableImages):
        return None
    return getattr(fake_data, name.lower())


def of_ones_own(config: Path) -> bool:
    """Whether a config takes pictures of the user's own: tests/test_own_pictures.py gives some to these."""
    return '"ImageFolder"' in json.dumps(yaml.safe_load(config.read_text())["data"])


def unexpected(err: str) -> list[str]:
    """Lines on stderr but for those by which data and weights say what was done to them."""
    said = (
        "is replaced by a fresh one",
        "starts fresh",
        "their ends are left out",
        "a checkpoint may not name its teacher",
        "texts are empty and left out",
        "are not resized as the model's weights ask for",
    )
    return [line for line in err.splitlines() if not line.startswith("zoo: ") or not any(s in line for s in said)]


every = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
configs = pytest.mark.parametrize("config", [c for c in CONFIGS if not of_ones_own(c)], ids=lambda path: path.stem)


def teachers(config: Path) -> dict[str, Path]:
    """The configs whose checkpoints a config needs, by the arguments that take them."""
    given = yaml.safe_load(config.read_text())["model"]
    arguments = given.get("init_args", {}) if isinstance(given, dict) else {}
    return {a: config.with_name(f"{name}.yaml") for a, name in TEACHERS.items() if arguments.get(a, "") is None}


class CurrentStatistics(L.Callback):
    """Let the running statistics of BatchNorm be those of the last batch.

    By PyTorch's momentum of 0.1 they are 4/5 their initial values after two steps. In evaluation each BatchNorm then
    divides by about 1 where the activations are far smaller, and after the 37 of EfficientNet nothing is left of the
    input that float32 could hold.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for layer in pl_module.modules():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.momentum = 1.0


@pytest.fixture(scope="session")
def short_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a config that several others learn from is trained for two steps, once."""
    return tmp_path_factory.mktemp("short_runs")


def train(zoo, config: Path, run: Path, *args: object, callbacks: Sequence[L.Callback] = ()) -> Path:
    """Fit a config into a run folder, after those it learns from, which lie beside it; return the folder."""
    checkpoints = []
    for argument, teacher in teachers(config).items():
        folder = run.parent / teacher.stem
        if not folder.exists():
            train(zoo, teacher, folder, *args, callbacks=callbacks)
        checkpoints += [f"--model.{argument}", folder / "checkpoints" / "best.ckpt"]
    code, _, err = zoo("fit", "-c", config, "--run_dir", run, *args, *checkpoints, callbacks=callbacks)
    assert (code, unexpected(err)) == (0, []), err
    return run


def floats(value: object) -> Iterator[float]:
    """All numbers of a prediction that a network computed: no class, step or text."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict):
        yield from floats(list(value.values()))
    elif isinstance(value, list):
        for part in value:
            yield from floats(part)


def measures(zoo, config: Path) -> list[str]:
    """The options by which a config says that its samples are measured, after training the classifier they name."""
    comments = [line for line in config.read_text().splitlines() if line.startswith("#")]
    options = [word for option in OPTION.findall("\n".join(comments)) for word in option]
    for name in {found[1] for word in options if (found := re.match(r"runs/(\w+)/1/", word))}:
        train(zoo, config.with_name(f"{name}.yaml"), Path("runs") / name / "1")
    return options


@every
def test_says_what_it_needs_on_its_second_line(config):
    needs = fake_writer(config) or of_ones_own(config) or teachers(config)
    assert not needs or config.read_text().splitlines()[1].startswith("# Needs: ")


@every
def test_first_line_and_length(config):
    lines = config.read_text().splitlines()
    assert re.match(r"# [A-Z].*[^ ]$", lines[0])
    assert len(lines) <= 30
    assert all(len(line) <= 120 for line in lines)


@configs
def test_states_a_result(config):
    if fake_writer(config) and "\n# Not run yet" in config.read_text():
        assert not stated(config), "a result that was not seen"
        return
    assert stated(config), f"its first line ends in no result such as '-> test/accuracy >= 0.96': {first_line(config)}"


def test_results_are_read_from_the_first_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("# Bars on digits, width 3 -> test/accuracy >= 0.96, test/rmse <= 55.\nmodel: X  # val/f1 >= 2\n")
    assert stated(path) == [("test/accuracy", ">=", 0.96), ("test/rmse", "<=", 55.0)]


def few_steps(config: Path) -> Any:
    """A parameter of pytest; slow if another config of its model class is tried in the fast suite."""
    chosen = f"tests/test_configs.py::test_fit_test_and_predict[{config.stem}]" in PORTABLE
    return pytest.param(config, id=config.stem, marks=[] if chosen else [pytest.mark.slow])


@pytest.mark.parametrize("config", [few_steps(c) for c in CONFIGS if not of_ones_own(c)])
def test_fit_test_and_predict(config, zoo, here, short_runs):
    options = [*SHORT]
    if write := fake_writer(config):
        write(here / "data", train=600)
        options += ["--data.batch_size", 16]  # a larger one takes minutes in bf16 on CPUs without such products
    run = short_runs / config.stem
    if not run.exists():
        train(zoo, config, run, *options, callbacks=[CurrentStatistics()])
    last = run / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "metrics.csv", "environment.json", "checkpoints"}
    code, out, err = zoo("test", "--ckpt_path", last, "--trainer.limit_test_batches", 2)
    assert (code, unexpected(err)) == (0, [])
    assert dict(MEASURED.findall(out)), "numbers are printed"
    code, out, err = zoo("predict", "--ckpt_path", last, "--trainer.limit_predict_batches", 2, "--out", "out.jsonl")
    assert (code, unexpected(err)) == (0, [])
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert out.startswith(f"{len(rows)} predictions")
    assert len(rows) > 10
    scores = [tuple(floats(row)) for row in rows]
    assert all(row and all(map(math.isfinite, row)) for row in scores)
    assert len(set(scores)) > len(rows) / 2, "the scores depend on the input"


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [c for c in CONFIGS if not fake_writer(c) and not of_ones_own(c)], ids=lambda path: path.stem
)
def test_reaches_its_stated_result(config, zoo):
    run = train(zoo, config, Path("trained") / config.stem)
    options = measures(zoo, config)
    results = stated(config)
    assert results
    measured = {}
    for command in {metric.partition("/")[0] for metric, *_ in results}:
        code, out, err = zoo(
            {"val": "validate"}.get(command, command), "--ckpt_path", run / "checkpoints" / "best.ckpt", *options
        )
        assert (code, unexpected(err)) == (0, [])
        measured |= {name: float(value) for name, value in MEASURED.findall(out)}
    for metric, sign, bound in results:
        value = measured[metric]
        print(f"{config.stem}: {metric} {value}")
        assert value >= bound if sign == ">=" else value <= bound, f"{metric} is {value}, stated {sign} {bound}"
