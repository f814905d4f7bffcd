"""The command line: LightningCLI with facts of the data, run folders, resume, and errors of one line."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import zoo.callbacks
import zoo.data
import zoo.layers
import zoo.losses
import zoo.models
import zoo.optim
import zoo.tasks
from zoo import runs
from zoo.callbacks import EarlyStopping, PredictionsFile, Progress, RunCheckpoints, StepSeed
from zoo.data.base import FACTS
from zoo.loggers import MetricsCSV, tensorboard_logger, wandb_logger
from zoo.parsing import UserError, ZooParser, allow_imports, check_config, one_line
from zoo.report import print_end_of_fit, print_metrics

LoggerName = Literal["csv", "wandb", "tensorboard"]


class ZooCLI(LightningCLI):
    """LightningCLI as zoo wants it. Any LightningModule and LightningDataModule will do, not only zoo's."""

    def __init__(self, args: list[str]) -> None:
        self.argv = args
        self.run_dir: Path | None = None
        self.resumed_from: Path | None = None
        super().__init__(
            args=args,
            parser_class=ZooParser,
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults={"enable_model_summary": False, "max_epochs": None},
        )

    # Arguments --------------------------------------------------------------------------------------------------------

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--early_stopping", type=EarlyStopping | None, default=None, help="slot; null is off")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument("--checkpoint", type=RunCheckpoints | None, default=None, help="slot; null is as usual")
            parser.add_argument(
                "--logger", type=list[LoggerName] | LoggerName, default="csv", help="beside metrics.csv, which is always"
            )
            parser.add_argument("--run_dir", type=str | None, default=None, help="folder of the run; null numbers one")
            parser.add_argument(
                "--resume", type=str | None, default=None, help="continue a run in its folder; alone: the newest run"
            )
        if subcommand == "predict":
            parser.add_argument("--out", type=str | None, default=None, help="file for the predictions, .csv or .jsonl")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        subcommand = next((a for a in self.argv if a in self._subcommand_parsers), None)
        checkpoint = option(self.argv, "--ckpt_path")
        if subcommand and checkpoint and Path(checkpoint).is_file():
            # What the checkpoint knows are defaults: the config and the command line stand above them.
            self._subcommand_parsers[subcommand].set_defaults(hyperparameters(Path(checkpoint)))
        for config in [*options(self.argv, "-c"), *options(self.argv, "--config")]:
            check_config(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let the checkpoint's hyperparameters override the command line."""

    # Building ---------------------------------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        assert self.subcommand is not None
        self.own = self.config[self.subcommand]
        if self.own.get("ckpt_path") and not re.match(r"\w+://", self.own.ckpt_path):
            readable_checkpoint(Path(self.own.ckpt_path))
        self.datamodule = self._build("data") if self.own.get("data") else None
        self._hand_over_facts()
        self.model = self._build("model")
        rest = Namespace({k: v for k, v in self.own.items() if k not in ("data", "model", "config")})
        self.config_init = self.parser.instantiate_classes(Namespace({"subcommand": self.subcommand, self.subcommand: rest}))
        if self.own.get("ckpt_path"):
            fits(Path(self.own.ckpt_path), self.model)
        self.trainer = self.instantiate_trainer()

    def _build(self, key: str) -> Any:
        self.__dict__.pop("config_dump", None)  # of which the hyperparameters are taken
        part = Namespace({"subcommand": self.subcommand, self.subcommand: Namespace({key: self.own[key]})})
        return self.parser.instantiate_classes(part)[self.subcommand][key]

    def _hand_over_facts(self) -> None:
        """Give the model what the data knows and the user has not said; refuse what contradicts."""
        init, name = self.own.model.get("init_args") or Namespace(), self.own.model.class_path.rpartition(".")[2]
        data_name = type(self.datamodule).__name__
        for fact in FACTS:
            if fact not in init:
                continue
            known, given = getattr(self.datamodule, fact, None), init[fact]
            if known is not None and given is not None and known != given:
                raise UserError(f"--model.{fact} is {given}, but {data_name} has {fact} {known}")
            if given is None and known is not None:
                init[fact] = known
        self._model_name = name

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        given = self.config_init[self.subcommand]
        callbacks: list[Any] = [Progress(), StepSeed()]
        callbacks += [given[slot] for slot in ("early_stopping",) if given.get(slot) is not None]
        if self.subcommand == "fit":
            self.checkpoints = given.get("checkpoint") or RunCheckpoints()
            callbacks.append(self.checkpoints)
        elif self.subcommand == "predict" and given.get("out"):
            callbacks.append(PredictionsFile(given.out))
        config = dict(given["trainer"])
        loggers = config.pop("logger", None)
        if self.subcommand == "fit" and not config.get("fast_dev_run"):
            kwargs["logger"] = self._open_run(loggers)
            kwargs["default_root_dir"] = str(self.run_dir)
        else:
            kwargs["logger"] = False if loggers is None else loggers
        kwargs.setdefault("enable_checkpointing", self.subcommand == "fit" and not config.get("fast_dev_run"))
        if not kwargs["enable_checkpointing"]:
            callbacks = [c for c in callbacks if not isinstance(c, RunCheckpoints)]
        return self._instantiate_trainer({**config, **kwargs}, callbacks)

    def _open_run(self, more: Any) -> list[Any]:
        """Make or find the run folder and the loggers that write there."""
        chosen = self.own.logger if isinstance(self.own.logger, list) else [self.own.logger]
        resumed = os.environ.get("ZOO_RESUME")
        folder = os.environ.get("ZOO_RUN_DIR")  # set by the first process for those that Lightning launches
        if folder is None:
            folder = str(Path(resumed) if resumed else runs.new_folder(self._run_name(), self.own.run_dir))
            os.environ["ZOO_RUN_DIR"] = folder
        self.run_dir = Path(folder)
        loggers: list[Any] = [MetricsCSV(folder, steps_done(Path(self.own.ckpt_path)) if resumed else None)]
        if "wandb" in chosen:
            name = "-".join(self.run_dir.parts[-2:])
            loggers.append(wandb_logger(self.run_dir, name, self._wandb_id(), self._dump()))
        if "tensorboard" in chosen:
            loggers.append(tensorboard_logger(self.run_dir))
        if more and more is not True:
            loggers += more if isinstance(more, list) else [more]
        return loggers

    def _run_name(self) -> str:
        config = option(self.argv, "-c", "--config")
        if config:
            return Path(config).stem
        data = type(self.datamodule).__name__ if self.datamodule else "data"
        return f"{self._model_name}_{data}".lower()

    def _wandb_id(self) -> str:
        assert self.run_dir is not None
        file = self.run_dir / "wandb_id"
        if not file.exists():
            import uuid

            runs.write_text(file, uuid.uuid4().hex[:8])
        return file.read_text().strip()

    def _dump(self) -> dict[str, Any]:
        parser = self._subcommand_parsers[str(self.subcommand)]
        text = parser.dump(self.own, skip_none=False, skip_link_targets=False, skip_validation=True, format="yaml")
        config = yaml.safe_load(text)
        for key in ("config", "ckpt_path", "resume", "run_dir"):
            config.pop(key, None)
        return config

    # Running ----------------------------------------------------------------------------------------------------------

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["weights_only"] = True
        if "verbose" in kwargs:
            kwargs["verbose"] = False
        if subcommand == "predict":
            kwargs["return_predictions"] = False
        return kwargs

    def fit(self, **kwargs: Any) -> None:
        if self.run_dir is not None and rank_zero_only.rank == 0:
            if not os.environ.get("ZOO_RESUME"):
                text = yaml.safe_dump(self._dump(), sort_keys=False)
                runs.write_text(self.run_dir / "config.yaml", text)
            devices = f"{self.trainer.world_size} x {type(self.trainer.accelerator).__name__}"
            runs.write_environment(self.run_dir, runs.environment(self.own.get("seed_everything"), devices))
        if rank_zero_only.rank == 0:
            count = sum(p.numel() for p in self.model.parameters())
            data = f" on {type(self.datamodule).__name__}" if self.datamodule else ""
            print(f"{self._model_name}{data}: {count:,} parameters" + (f", run {self.run_dir}" if self.run_dir else ""))
        began = time.monotonic()
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            self.trainer.fit(**kwargs)
        finally:
            signal.signal(signal.SIGINT, before)
        if self.checkpoints.interrupted:
            raise KeyboardInterrupt
        if rank_zero_only.rank == 0:
            print_end_of_fit(self.trainer, self.run_dir, self.checkpoints, time.monotonic() - began)

    def _interrupt(self, *_: Any) -> None:
        if self.checkpoints.interrupted:
            raise KeyboardInterrupt
        self.checkpoints.interrupted = True
        if rank_zero_only.rank == 0:
            print("\nCtrl-C: finishing this step and saving a checkpoint; once more to stop at once", file=sys.stderr)

    def validate(self, **kwargs: Any) -> None:
        print_metrics(self.trainer.validate(**kwargs), self.model)

    def test(self, **kwargs: Any) -> None:
        print_metrics(self.trainer.test(**kwargs), self.model)

    def predict(self, **kwargs: Any) -> None:
        out = self.own.get("out")
        if out is None:
            raise UserError("predict needs a file to write to: --out predictions.csv (or .jsonl)")
        self.trainer.predict(**kwargs)
        if rank_zero_only.rank == 0:
            writer = next(c for c in self.trainer.callbacks if isinstance(c, PredictionsFile))  # type: ignore
            print(f"{writer.rows} predictions in {out}")


def options(argv: list[str], name: str) -> list[str]:
    """The values given for an option, as ``--name value`` or ``--name=value``."""
    spaced = [argv[i + 1] for i, arg in enumerate(argv[:-1]) if arg == name]
    return spaced + [arg.partition("=")[2] for arg in argv if arg.startswith(name + "=")]


def option(argv: list[str], *names: str) -> str | None:
    """The first value given for an option under any of its names."""
    return next((value for name in names for value in options(argv, name)), None)


def expand_resume(argv: list[str]) -> list[str]:
    """Turn ``fit --resume [RUN]`` into the run's own config, its last checkpoint and its folder."""
    os.environ.pop("ZOO_RESUME", None)
    at = next((i for i, a in enumerate(argv) if a == "--resume" or a.startswith("--resume=")), None)
    if at is None or "fit" not in argv:
        return argv
    which, rest = None, argv[at + 1 :]
    if "=" in argv[at]:
        which = argv[at].partition("=")[2]
    elif rest and not rest[0].startswith("-"):
        which, rest = rest[0], rest[1:]
    before = [a for a in argv[:at] if a != "fit"]
    named = option([*before, *rest], "-c", "--config")
    run = runs.find(which, Path(named).stem if named else None)
    others = without_option(without_option([*before, *rest], "-c"), "--config")
    os.environ["ZOO_RESUME"] = str(run)
    return ["fit", "-c", str(run / "config.yaml"), *others, "--ckpt_path", str(runs.newest_checkpoint(run))]


def without_option(argv: list[str], name: str) -> list[str]:
    kept, skip = [], False
    for arg in argv:
        if not skip and arg != name and not arg.startswith(name + "="):
            kept.append(arg)
        skip = arg == name
    return kept


def hyperparameters(path: Path) -> dict[str, Any]:
    """Class and arguments of the model and the data in a checkpoint, as parser defaults."""
    checkpoint = readable_checkpoint(path)
    defaults = {}
    for key, name in (("model", "hyper_parameters"), ("data", "datamodule_hyper_parameters")):
        saved = {k: v for k, v in (checkpoint.get(name) or {}).items() if k != "_instantiator"}
        if "_class_path" in saved:
            defaults[key] = {"class_path": saved.pop("_class_path"), "init_args": saved}
    return defaults


def readable_checkpoint(path: Path) -> dict[str, Any]:
    """Open a checkpoint without running anything in it or reading its weights, or say what is wrong with it."""
    if not path.exists():
        raise UserError(f"no checkpoint {path}")
    if path.is_dir():
        return {}
    try:
        return torch.load(path, weights_only=True, map_location="meta", mmap=True)
    except Exception as error:
        if "Weights only load failed" in str(error) or "weights_only" in str(error):
            raise UserError(f"{path} holds Python objects, which could run code; only plain tensors are read") from None
        raise UserError(f"{path} is not a whole checkpoint: {str(error).splitlines()[0]}") from None


def fits(path: Path, model: L.LightningModule) -> None:
    """Compare the weights in a checkpoint with the model's before Lightning fails on them."""
    state = readable_checkpoint(path).get("state_dict") if path.is_file() else None
    own = model.state_dict()
    if state is None or not own:  # sharded, or built later in configure_model
        return
    wrong = {
        "missing": [k for k in own if k not in state],
        "unexpected": [k for k in state if k not in own],
        "of another shape": [
            f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
            for k in own
            if k in state and state[k].shape != own[k].shape
        ],
    }
    if any(wrong.values()) and model.strict_loading:
        parts = [f"{len(v)} {k} ({', '.join(v[:2])}{', ...' if len(v) > 2 else ''})" for k, v in wrong.items() if v]
        raise UserError(f"{path} was not made by this {type(model).__name__}: " + "; ".join(parts))


def steps_done(path: Path) -> int:
    """Batches that had stepped when a checkpoint was taken: the number of the first step still to come."""
    loops = readable_checkpoint(path).get("loops") or {}
    return loops.get("fit_loop", {}).get("epoch_loop.state_dict", {}).get("_batches_that_stepped", 0)


def main(args: list[str] | None = None) -> int:
    """Run a command; return its exit code.

    0 done, 1 a check said no, 2 a mistake of the user (one line on stderr), 3 training became non-finite, 130 Ctrl-C.
    """
    argv = list(sys.argv[1:] if args is None else args)
    quiet()
    os.environ.pop("ZOO_RUN_DIR", None) if rank_zero_only.rank == 0 else None
    cli: ZooCLI | None = None
    try:
        allow_imports(options(argv, "--allow-import"))
        argv = expand_resume(without_option(argv, "--allow-import"))
        cli = ZooCLI.__new__(ZooCLI)
        cli.__init__(argv)
        return 0
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        if cli is not None and getattr(getattr(cli, "checkpoints", None), "interrupted", False):
            return 130
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except Exception as error:
        discard_failed(cli)
        if os.environ.get("ZOO_DEBUG") == "1":
            raise
        text = explain(error)
        if text is None:
            raise
        print(f"zoo: error: {text}", file=sys.stderr)
        return 2
    finally:
        os.environ.pop("ZOO_RUN_DIR", None)


def discard_failed(cli: ZooCLI | None) -> None:
    folder = getattr(cli, "run_dir", None)
    if folder is not None and rank_zero_only.rank == 0 and not os.environ.get("ZOO_RESUME"):
        runs.discard(folder)


def explain(error: BaseException) -> str | None:
    """One line for a mistake of the user; None for what may be a bug, which deserves its traceback."""
    chain, seen = error, []
    while chain is not None:
        seen.append(chain)
        chain = chain.__cause__ or chain.__context__
    for known in seen:
        if isinstance(known, UserError):
            return str(known)
    if isinstance(error, (ValueError, MisconfigurationException, yaml.YAMLError)):
        return one_line(str(error))
    if isinstance(error, OSError):
        return f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower():
        return (
            "out of memory: try a smaller --data.batch_size with --trainer.accumulate_grad_batches to match, "
            "or --trainer.precision bf16-mixed"
        )
    return None


def quiet() -> None:
    """Lightning's hints that do not apply here, or say again what zoo says."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*Using `DistributedSampler` with the dataloaders.*",
        ".*enable_checkpointing.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*LeafSpec.*",
        ".*No positive samples in targets.*",
        ".*No negative samples in targets.*",
    ):
        warnings.filterwarnings("ignore", text)
