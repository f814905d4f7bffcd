"""Each row of the table of error messages, provoked by a real error of jsonargparse, Lightning or torch."""

import sys
import types

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser
from torch.utils.data import DataLoader, Dataset

from zoo.cli import error_messages
from zoo.cli.commands import load_command
from zoo.cli.error_messages import ROWS, explain, find_complaint, find_row, one_line
from zoo.cli.lightning_cli import ZooCLI
from zoo.cli.parser import ZooParser, allow_imports
from zoo.errors import UserError

DIGITS = ["--model", "MLPClassifier", "--data", "Digits"]


class Broken(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> int:
        raise ValueError("sample 0 is torn: line 2")


def parse(*argv: str) -> None:
    """Parse and build as ``zoo fit`` does; a ``fast_dev_run`` opens no run."""
    allow_imports()
    ZooCLI(load_command("fit"), [*argv, "--trainer.fast_dev_run", "true"])


def parse_option(kind: object, value: str) -> None:
    """Parse an option of a type."""
    parser = ZooParser()
    parser.add_argument("--x", type=kind)
    parser.parse_args(["--x", value])


def ambiguous() -> None:
    """A name that two packages have, neither of which zoo prefers."""
    for name in ("one_package", "other_package"):
        module = types.ModuleType(name)
        module.Twin = type("Twin", (L.Callback,), {"__module__": name})  # type: ignore[attr-defined]
        sys.modules[name] = module
    try:
        parse(*DIGITS, "--trainer.callbacks", "Twin")
    finally:
        for name in ("one_package", "other_package"):
            del sys.modules[name].Twin
            del sys.modules[name]


CASES = {
    error_messages.unknown_argument: (
        lambda: parse(*DIGITS, "--trainer.max_epoch", "3"),
        "unknown option --trainer.max_epoch; did you mean --trainer.max_epochs",
    ),
    error_messages.unknown_key_of_section: (
        lambda: parse("--trainer", '{"max_epoch": 3}', *DIGITS),
        "unknown key 'trainer.max_epoch'; did you mean trainer.max_epochs",
    ),
    error_messages.forbidden_import: (
        lambda: parse(*DIGITS, "--trainer.callbacks", "subprocess.Popen"),
        "subprocess.Popen is outside zoo, lightning, torch, torchvision, torchmetrics and this folder; "
        "allow it with --allow-import subprocess",
    ),
    error_messages.unknown_key: (
        lambda: parse(*DIGITS, "--model.hiden", "[3]"),
        "model: MLPClassifier has no option 'hiden'; did you mean hidden?",
    ),
    error_messages.missing_argument: (
        lambda: parse(*DIGITS, "--trainer.logger", "TensorBoardLogger"),
        "trainer.logger: TensorBoardLogger needs save_dir; in the folder of the run: --logger tensorboard",
    ),
    error_messages.unknown_class: (
        lambda: parse("--model", "MLPClasifier"),
        "model: unknown class 'MLPClasifier'; did you mean MLPClassifier",
    ),
    error_messages.other_class: (
        lambda: parse("--model", "torch.nn.Linear"),
        "model: 'torch.nn.Linear' is not a LightningModule",
    ),
    error_messages.not_a_class: (
        lambda: parse_option(torch.nn.Module, "[1]"),
        "x: a Module is given by its name, or by class_path and init_args; got '[1]'",
    ),
    error_messages.ambiguous_class: (
        ambiguous,
        "trainer.callbacks: Twin is the name of several classes; give one as one_package.Twin or other_package.Twin",
    ),
    error_messages.other_type: (
        lambda: parse(*DIGITS, "--trainer.max_epochs", "many"),
        "trainer.max_epochs: expected a whole number, got 'many'",
    ),
    error_messages.negative_size: (
        lambda: torch.empty(-8),
        "a width or size of the model is -8, but must be at least 1",
    ),
    error_messages.no_gpu: (
        lambda: L.Trainer(accelerator="gpu"),
        "--trainer.accelerator is gpu, but torch finds no GPU; use cpu or auto",
    ),
    error_messages.no_accelerator: (
        lambda: L.Trainer(accelerator="cuda"),
        "--trainer.accelerator is cuda, which this machine does not have; there is cpu",
    ),
    error_messages.error_of_worker: (
        lambda: next(iter(DataLoader(Broken(), num_workers=1))),
        "sample 0 is torn: line 2",
    ),
}


def report_of(provoke) -> str:
    """The text of the error, before zoo makes a sentence of it."""
    seen = []

    def keep(message, parser=None):
        seen.append((message, parser))
        return one_line(message, parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.cli.parser.one_line", keep)
        with pytest.raises(Exception) as caught:
            provoke()
    return seen[0] if seen else (str(caught.value), None)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.sentence.__name__)
def test_each_row_is_provoked_by_a_real_error(row, here):
    provoke, sentence = CASES[row.sentence]
    message, parser = report_of(provoke)
    assert find_row(find_complaint(message, parser))[0] is row
    assert sentence in one_line(message, parser)
    assert "\n" not in one_line(message, parser)


def test_every_row_has_a_sentence_of_its_own():
    assert set(CASES) == {row.sentence for row in ROWS}
    assert len(CASES) == len(ROWS)


SENTENCES = {
    "capitals": (["--model.optimizer", "Adamw"], "model.optimizer: unknown class 'Adamw'; did you mean AdamW?"),
    "no dashes": (["max_epochs"], "unexpected argument 'max_epochs': options begin with --"),
    "rate": (["--model.optimizer.lr", "3"], "model.optimizer takes no lr: the learning rate is --model.lr"),
    "other section": (["--model.batch_size", "3"], "did you mean --data.batch_size?"),
    "no such option": (["--model.zebra", "3"], "MLPClassifier has no option 'zebra'; it takes hidden, activation, "),
    "switch": (["--ema", "true"], "expected a class or its arguments, got true: --ema '{}' turns it on"),
    "choices": (["--logger", "wandbb"], "logger: expected a list, or one of csv, wandb, tensorboard, got 'wandbb'"),
    "constructor": (["--model.lr", "-1"], "lr must be above 0, got -1.0"),
    "seed": (["--seed_everything", "-5"], "--seed_everything is -5: a seed is a whole number from 0 to 4294967295"),
    "strategy": (["--trainer.strategy", "dpp"], "--trainer.strategy: no 'dpp'; did you mean ddp?; there is auto, ddp"),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences(name, here):
    argv, sentence = SENTENCES[name]
    with pytest.raises(ValueError) as caught:
        parse(*DIGITS, *argv)
    assert sentence in explain(caught.value)


def test_arguments_without_a_class(here):
    with pytest.raises(UserError, match=r"model: give its class before .*--model NAME"):
        parse("--model.hidden", "[3]")


def test_a_model_is_required(here):
    with pytest.raises(UserError, match="fit needs a model: give --model NAME, or a config with -c FILE"):
        parse("--data", "Digits")


def test_what_may_be_a_bug_has_no_sentence():
    assert explain(TypeError("a bug")) is None
    assert explain(FileNotFoundError(2, "No such file", "a.txt")) == "a.txt: No such file"
    assert explain(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: ...")).startswith("out of")
    with pytest.raises(TypeError) as caught:  # noqa: PT012
        try:
            raise UserError("the cause")
        except UserError:
            raise TypeError("around it") from None
    assert explain(caught.value) == "the cause"


def test_lightnings_parser_fails_as_its_own_where_it_should_not_exit():
    parser = ZooParser(exit_on_error=False)
    parser.add_argument("--x", type=int)
    with pytest.raises(Exception, match="unrecognized arguments: --y") as caught:
        parser.parse_args(["--y", "1"])
    assert not isinstance(caught.value, UserError)
    assert issubclass(ZooParser, LightningArgumentParser)
