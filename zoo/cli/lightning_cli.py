"""ZooCLI: LightningCLI for one command, with data specs, run folders and errors of one line."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import warnings
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from zoo.callbacks import BestAndLast, DeterministicSteps, Progress
from zoo.callbacks.load_in_double import LoadInDouble
from zoo.callbacks.weight_choice import WeightChoice
from zoo.checkpoints import Checkpoint
from zoo.checkpoints.checkpoint import damage_in_one_line
from zoo.cli import no_effect, validation
from zoo.cli.adapters import adapter_callbacks, apply_lora
from zoo.cli.argv import option, options
from zoo.cli.checkpoint_defaults import defaults_of
from zoo.cli.fitted import restore_fitted, without_fitted
from zoo.cli.parser import ZooParser, check_config
from zoo.cli.run_data import check_data, find_files
from zoo.cli.signals import StopSignals
from zoo.cli.slots import SLOTS
from zoo.cli.trainer import ZooTrainer
from zoo.data.base import DataModule, spec_of
from zoo.data.spec import DataSpec
from zoo.distributed import is_main_process
from zoo.errors import UserError
from zoo.runs import fingerprint, record, run_folder
from zoo.trust.memory import MemoryBudget, budget_of_checkpoint, budget_of_machine

# jsonargparse finds a short name among the classes that are imported already.
for _package in ("callbacks", "data", "layers", "losses", "models", "optim", "tasks"):
    importlib.import_module(f"zoo.{_package}")


class ZooCLI(LightningCLI):
    """LightningCLI for one command: parses its options, then builds the data, the model and the trainer, in this order.

    Any LightningModule and LightningDataModule will do, not only those of zoo. Each command has a parser of its own, so
    there are no subcommands in the sense of LightningCLI; the command itself is run by the caller, as in
    ``command.run(cli)``.

    To change how a project is built, subclass it and override a public method of LightningCLI: ``setup`` of options in
    ``add_arguments_to_parser(parser)`` (call ``super()``), what happens around building in
    ``before_instantiate_classes()`` and ``after_instantiate_classes()``, and the trainer in ``instantiate_trainer()``.
    After construction ``config`` holds the options, ``config_init`` the same with objects, and ``datamodule``,
    ``model`` and ``trainer`` what they describe.

    Args:
        command: module of the command, see :mod:`zoo.cli.commands`.
        argv: options of the command.
        typed: the command line as the user typed it, for the record of the run; None is the command and ``argv``.
        resumed: folder of the run to continue; None begins a new run.
        callbacks: added to those of the trainer.
        signals: handles the signals that end the command, while it is entered as a context.

    Raises:
        UserError: if the options are wrong, or do not fit together.
    """

    def __init__(
        self,
        command: Any,
        argv: list[str],
        typed: Sequence[str] | None = None,
        resumed: Path | None = None,
        callbacks: Sequence[L.Callback] = (),
        signals: StopSignals | None = None,
    ) -> None:
        self.command = command
        self.argv = argv
        self.typed = [command.name, *argv] if typed is None else list(typed)
        self.resumed = resumed
        self.extra_callbacks = list(callbacks)
        # Set when a run is opened, by `zoo fit` alone.
        self.run_dir: Path | None = None
        self.record: record.RunRecord | None = None
        self.checkpoints: BestAndLast | None = None
        self.signals = signals or StopSignals()
        # Of the files and folders that the data name, on the main process.
        self.data_fingerprint: dict[str, Any] = {}
        super().__init__(
            args=argv,
            run=False,
            parser_class=ZooParser,
            parser_kwargs={"prog": f"zoo {command.name}", "description": f"zoo {command.name}: {command.help}."},
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_class=ZooTrainer,
            trainer_defaults={"enable_model_summary": False},
        )

    @property
    def model_name(self) -> str:
        """Name of the class of the model."""
        return self.config.model.class_path.rpartition(".")[2]

    @property
    def run_name(self) -> str:
        """Name of the runs of this config, the folder under ``runs/``."""
        return record.name(option(self.argv, "-c", "--config"), self.model_name, self.datamodule)

    # Options ----------------------------------------------------------------------------------------------------------

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything",
            type=bool | int,
            default=self.seed_everything_default,
            help="seed of all random numbers; true picks a random one",
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})
        # Both may be absent for the parser: `parse_arguments` says what to give.
        parser.add_lightning_class_args(L.LightningModule, "model", subclass_mode=True, required=False)
        parser.add_lightning_class_args(L.LightningDataModule, "data", subclass_mode=True, required=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for slot, (kind, text) in SLOTS.items():
            parser.add_argument(f"--{slot}", type=kind | None, default=None, help=f"{text}; null turns it off")
        parser.add_argument(
            "--checkpoint",
            type=BestAndLast | None,
            default=None,
            help="which checkpoints to keep; null keeps the best and the last",
        )
        parser.add_argument(
            "--logger",
            type=list[record.LoggerName] | record.LoggerName,
            default="csv",
            help="loggers besides metrics.csv, which is always written",
        )
        self.command.add_arguments(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        checkpoint = option(self.argv, "--ckpt_path")
        if checkpoint:
            # Hyperparameters of the checkpoint are defaults: the config and the command line take precedence.
            parser.set_defaults(defaults_of(Checkpoint(checkpoint)))
        for config in options(self.argv, "-c", "--config"):
            check_config(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.config = parser.parse_args(args)
        make_plain(self.config)
        validation.check_required(self.command.name, self.config)
        self.replaced_data: dict[str, Any] = {}
        if checkpoint:
            kept = Checkpoint(checkpoint).hyperparameters.get("data")
            self.replaced_data = restore_fitted(self.config, kept, self.argv)

    # Building ---------------------------------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        self._find_data()
        self.datamodule = self._build("data") if self.config.get("data") else None
        self._fill_in_data_spec()
        self.model = self._build_model()
        rest = Namespace()
        for key, value in self.config.items():  # keys are whole paths here: model.init_args.lr
            if key.partition(".")[0] not in ("data", "model", "config"):
                rest[key] = value
        self.config_init = self.parser.instantiate_classes(rest)
        checkpoint = self.config.get("ckpt_path")
        if checkpoint:
            opened = Checkpoint(checkpoint)
            if self.config.get("lora") is None:
                opened.refuse_adapter()
            opened.check(self.model)
            opened.check_weights(self.config.get("weights") or "auto")
        if isinstance(self.datamodule, DataModule):
            self.datamodule.check_model(self.model)
        apply_lora(self)
        try:
            self.trainer = self.instantiate_trainer()
        except BaseException:
            self.discard_failed_run()
            raise

    def _find_data(self) -> None:
        """Find the files of the data, and compare them with those that the run to resume was trained on."""
        checkpoint = self.config.get("ckpt_path")
        run = self.resumed or (run_folder.of_checkpoint(Path(checkpoint)) if checkpoint else None)
        if run is not None:
            find_files(self.config, run, no_effect.typed_names(self.typed))
        arguments = (self.config.get("data") or Namespace()).get("init_args")
        if self.command.name not in ("fit", "validate", "test") or not arguments or not is_main_process():
            return
        self.data_fingerprint = fingerprint.take(arguments.as_dict())
        if self.command.name == "fit" and checkpoint:
            accepted = self.config.data_changed == "ok"
            check_data(Checkpoint(checkpoint), self.data_fingerprint, self.resumed is not None, accepted)

    def _build(self, key: str) -> Any:
        # Lightning takes the hyperparameters from this dump, which it makes once: other values may be known by now.
        vars(self).pop("config_dump", None)
        checkpoint = self.config.get("ckpt_path")
        if checkpoint is None:
            return self.parser.instantiate_classes(Namespace({key: self.config[key]}))[key]
        with damage_in_one_line(checkpoint, f"the {key} that it describes cannot be built"):
            return self.parser.instantiate_classes(Namespace({key: self.config[key]}))[key]

    def _build_model(self) -> Any:
        """Build the model, on the meta device if its weights are to be sharded and it knows how to be built there."""
        arguments = self.config.model.get("init_args") or Namespace()
        strategy = getattr(self.config.trainer.get("strategy"), "class_path", "")
        is_sharded = strategy.endswith(".ModelParallelStrategy")
        if not is_sharded or arguments.get("meta_device", False) is not None:
            with self._memory_budget():
                return self._build("model")
        arguments.meta_device = True
        try:
            return self._build("model")
        finally:
            arguments.meta_device = None  # in the config it stays as the user left it

    def _memory_budget(self) -> MemoryBudget:
        """Return how much the model may ask for: by its checkpoint, or else by the machine."""
        path = self.config.get("ckpt_path")
        checkpoint = Checkpoint(path) if path else None
        if checkpoint is None or checkpoint.is_sharded:
            return budget_of_machine()
        return budget_of_checkpoint(checkpoint.metadata)

    def _fill_in_data_spec(self) -> None:
        """Give the model the attributes of the data that it does not have, and refuse contradictions."""
        if self.config.get("sources") and self.config.get("ckpt_path"):
            return  # of new files; the checkpoint has all arguments, and the files of training may be gone
        arguments = self.config.model.get("init_args") or Namespace()
        fields = [field for field in DataSpec.names() if field in arguments]
        spec = spec_of(self.datamodule, fields)
        for field in fields:
            of_data = getattr(spec, field)
            if of_data is None:
                continue
            of_model = arguments[field]
            if of_model is None:
                arguments[field] = of_data
            elif of_model != of_data and not self._overrides_spec(field, of_model):
                data = type(self.datamodule).__name__
                raise UserError(f"--model.{field} is {of_model}, but {data} has {field} {of_data}")

    def _overrides_spec(self, field: str, value: Any) -> bool:
        """Return whether the data can take a value of the model, as grey images can have three channels."""
        return isinstance(self.datamodule, DataModule) and self.datamodule.override_spec(field, value)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        validation.check(self.command.name, self.config, self.config_init, SLOTS)
        no_effect.check_typed(self.command.name, self.typed, self.config)
        arguments = dict(self.config_init["trainer"])
        callbacks = arguments.pop("callbacks", None) or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        if arguments.get("enable_progress_bar") is not False:
            callbacks.append(Progress())
        callbacks += [DeterministicSteps(), LoadInDouble(), self.signals, *self.extra_callbacks]
        if self.config.get("weights") is not None:
            callbacks.append(WeightChoice(self.config.weights))
        callbacks += adapter_callbacks(self)
        if arguments.get("logger") is None:
            arguments["logger"] = False
        arguments["enable_checkpointing"] = False
        of_command = {}
        if hasattr(self.command, "trainer_arguments"):
            of_command = self.command.trainer_arguments(self)
        callbacks += of_command.pop("callbacks", [])
        arguments.update(of_command)
        arguments.update(kwargs)
        if not arguments["enable_checkpointing"]:
            callbacks = [callback for callback in callbacks if not isinstance(callback, BestAndLast)]
        return self.trainer_class(**arguments, callbacks=callbacks)

    # Runs -------------------------------------------------------------------------------------------------------------

    def open_run(self) -> list[Any]:
        """Make or find the folder of the run; return the loggers that write there."""
        resumed = None if self.resumed is None else str(self.resumed)
        self.run_dir = record.folder(self.run_name, self.config.run_dir, resumed)
        config = self.dump_config()
        command = shlex.join(["zoo", *self.typed])
        self.record = record.RunRecord(self.run_dir, config, command, self.data_fingerprint)
        next_step = None
        if resumed is not None:
            next_step = 0
        if self.config.ckpt_path:
            checkpoint = Checkpoint(self.config.ckpt_path)
            if resumed is None:
                no_effect.check_restored(checkpoint, config, no_effect.typed_names(self.typed))
            else:
                next_step = checkpoint.steps_done
        more = self.config_init["trainer"].get("logger")
        return record.loggers(self.run_dir, self.config.logger, more, self.dump_config, next_step)

    def discard_failed_run(self) -> None:
        """Remove the folder of a new run that failed before its first checkpoint."""
        if self.run_dir is not None and self.resumed is None and is_main_process():
            run_folder.discard(self.run_dir)

    def dump_config(self) -> dict[str, Any]:
        """Return the config of a run with every default, as ``config.yaml`` holds it."""
        text = self.parser.dump(
            self.config,
            skip_none=False,
            skip_link_targets=False,
            skip_validation=True,
            format="yaml",
        )
        # jsonargparse does not know the name of a function, as ModelPruning takes one, for plain text.
        text = re.sub(r"Unable to serialize instance (\w+)$", r"\1", text, flags=re.MULTILINE)
        config = yaml.safe_load(text)
        for key in ("config", "ckpt_path", "data_changed", "resume", "run_dir"):
            config.pop(key, None)
        return without_fitted(config, self.replaced_data)


def make_plain(value: Any) -> Any:
    """Return a config with texts in place of defaults of Lightning's callbacks that YAML cannot hold: enums, devices.

    Args:
        value: the config, changed in place, or a value in it.
    """
    if isinstance(value, Enum) and isinstance(value, str):
        return value.value
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, Namespace):
        for key, item in vars(value).items():
            setattr(value, key, make_plain(item))
    elif isinstance(value, dict):
        value.update({key: make_plain(item) for key, item in value.items()})
    elif isinstance(value, list):
        value[:] = [make_plain(item) for item in value]
    return value
