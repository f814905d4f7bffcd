"""The command line: LightningCLI with a data spec, run folders, resume, and errors of one line."""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from zoo.callbacks import (
    EMA,
    BestAndLast,
    DeterministicSteps,
    EarlyStopping,
    FineTuning,
    GenerationMetrics,
    GradientDiagnostics,
    LRFinder,
    MisclassifiedImages,
    NaNGuard,
    NonFiniteError,
    PredictionWriter,
    Progress,
)
from zoo.callbacks.nan.trace import is_finite
from zoo.checkpoints import fits, hyperparameters, is_url, steps_done
from zoo.cli import trainer, validation
from zoo.cli.argv import expand_resume, option, options, without_option
from zoo.cli.commands import export, generate, sample
from zoo.cli.error_messages import quiet
from zoo.cli.parser import ZooParser, allow_imports, check_config, explain
from zoo.cli.report import (
    print_end_of_fit,
    print_metrics,
    print_samples,
    print_trained_already,
    relative,
    resume_command,
)
from zoo.cli.trainer import Weights, ZooTrainer
from zoo.data.base import SPEC_FIELDS, DataModule
from zoo.distributed import is_main_process
from zoo.errors import UserError
from zoo.runs import record, run_folder
from zoo.runs.fast_epoch_loop import FastEpochLoop

# Short names are found among the classes that are imported already.
for _room in ("callbacks", "data", "layers", "losses", "models", "optim", "tasks"):
    importlib.import_module(f"zoo.{_room}")

# Callbacks with a key of their own, so that two configs combine without one list replacing the other.
SLOTS: dict[str, tuple[Any, str]] = {
    "ema": (EMA, "average the weights, for validation and after"),
    "nan_guard": (NaNGuard, "stop at the first non-finite value and name what made it"),
    "early_stopping": (EarlyStopping, "stop when a metric no longer improves"),
    "fine_tuning": (FineTuning, "freeze, and unfreeze by plan"),
    "lr_finder": (LRFinder, "find the learning rate before training starts"),
    "gradients": (GradientDiagnostics, "measure gradients, updates and dead units"),
    "generation_metrics": (GenerationMetrics, "compare the images that a model makes with real ones"),
}


class ZooCLI(LightningCLI):
    """LightningCLI as zoo wants it. Any LightningModule and LightningDataModule will do, not only zoo's."""

    def __init__(self, args: list[str], callbacks: Sequence[L.Callback] = (), typed: Sequence[str] = ()) -> None:
        self.argv, self.extra_callbacks, self.typed = args, list(callbacks), typed or args
        self.run_dir: Path | None = None
        self.record: record.RunRecord | None = None
        super().__init__(
            args=args,
            parser_class=ZooParser,
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_class=ZooTrainer,
            trainer_defaults={"enable_model_summary": False},
        )

    # Arguments --------------------------------------------------------------------------------------------------------

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        own = {name: {"model", "datamodule"} for name in ("plan", "lr-find", "diagnose", "show-data")}
        return LightningCLI.subcommands() | own

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for slot, (kind, text) in SLOTS.items():
            parser.add_argument(f"--{slot}", type=kind | None, default=None, help=f"{text}; null is off")
        parser.add_argument(
            "--checkpoint",
            type=BestAndLast | None,
            default=None,
            help="which checkpoints to keep; null is the usual",
        )
        parser.add_argument(
            "--logger",
            type=list[record.LoggerName] | record.LoggerName,
            default="csv",
            help="beside metrics.csv, which is always",
        )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument("--run_dir", type=str | None, default=None, help="folder of the run; null numbers one")
            parser.add_argument(
                "--resume", type=str | None, default=None, help="continue a run in its folder; alone: the newest run"
            )
        if subcommand in ("validate", "test", "predict"):
            parser.add_argument(
                "--weights", type=Weights, default="auto", help="averages of EMA (where there are any), or raw weights"
            )
        if subcommand == "diagnose":
            parser.add_argument("--json", action="store_true", help="print the findings for programs")
        if subcommand == "test":
            text = "draw the confusion matrix and the worst mistakes into the run's folder, where inputs are images"
            parser.add_argument("--plots", type=bool, default=True, help=text)
        if subcommand == "show-data":
            text = "file for the picture, .png; null is data.png beside the config's runs"
            parser.add_argument("--out", type=str | None, default=None, help=text)
        if subcommand == "predict":
            parser.add_argument("--out", type=str | None, default=None, help="file for the predictions, .csv or .jsonl")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        subcommand = next((a for a in self.argv if a in self._subcommand_parsers), None)
        checkpoint = option(self.argv, "--ckpt_path")
        if subcommand and checkpoint and not is_url(checkpoint):
            # What the checkpoint knows are defaults: the config and the command line stand above them.
            self._subcommand_parsers[subcommand].set_defaults(hyperparameters(Path(checkpoint)))
        for config in options(self.argv, "-c", "--config"):
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
        self.datamodule = self._build("data") if self.own.get("data") else None
        self._hand_over_facts()
        self.model = self._build_model()
        built = ("data", "model", "config")  # keys are whole paths here: model.init_args.lr
        rest = Namespace({k: v for k, v in self.own.items() if k.partition(".")[0] not in built})
        self.config_init = self.parser.instantiate_classes(
            Namespace({"subcommand": self.subcommand, self.subcommand: rest})
        )
        if self.own.get("ckpt_path") and not is_url(self.own.ckpt_path):
            fits(Path(self.own.ckpt_path), self.model)
            trainer.choose_weights(self.model, self.own.get("weights"))
        if isinstance(self.datamodule, DataModule):
            self.datamodule.check_model(self.model)
        self.trainer = self.instantiate_trainer()

    def _build(self, key: str) -> Any:
        self.__dict__.pop("config_dump", None)  # of which the hyperparameters are taken
        part = Namespace({"subcommand": self.subcommand, self.subcommand: Namespace({key: self.own[key]})})
        return self.parser.instantiate_classes(part)[str(self.subcommand)][key]

    def _build_model(self) -> Any:
        """Where weights are divided among devices, one that knows how gets memory only after that."""
        init, strategy = self.own.model.get("init_args") or Namespace(), self.own.trainer.get("strategy")
        divides = getattr(strategy, "class_path", "").endswith(".ModelParallelStrategy")
        if not divides or init.get("meta_device", False) is not None:
            return self._build("model")
        init.meta_device = True
        try:
            return self._build("model")
        finally:
            init.meta_device = None  # in the config it stays what the user said

    def _hand_over_facts(self) -> None:
        """Give the model what the data knows and the user has not said; refuse what contradicts."""
        init, name = self.own.model.get("init_args") or Namespace(), self.own.model.class_path.rpartition(".")[2]
        data_name = type(self.datamodule).__name__
        for field in SPEC_FIELDS:
            if field not in init:
                continue
            known, given = getattr(self.datamodule, field, None), init[field]
            if known is not None and given is not None and known != given and not self._overrides_spec(field, given):
                raise UserError(f"--model.{field} is {given}, but {data_name} has {field} {known}")
            if given is None and known is not None:
                init[field] = known
        self._model_name = name

    def _overrides_spec(self, field: str, given: Any) -> bool:
        """Whether the data can be what the user told the model, as grey images in three channels."""
        return isinstance(self.datamodule, DataModule) and self.datamodule.override_spec(field, given)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        given = self.config_init[str(self.subcommand)]
        validation.check(str(self.subcommand), self.own, given, SLOTS)
        shown = [] if given["trainer"].get("enable_progress_bar") is False else [Progress()]
        callbacks: list[Any] = [*shown, DeterministicSteps(), *self.extra_callbacks]
        if self.subcommand == "fit":
            callbacks += [given[slot] for slot in SLOTS if given.get(slot) is not None]
            self.checkpoints = given.get("checkpoint") or BestAndLast()
            callbacks.append(self.checkpoints)
        elif self.subcommand == "test" and given.get("plots") and self.own.get("ckpt_path"):
            callbacks.append(MisclassifiedImages())
        elif self.subcommand == "predict" and given.get("out"):
            callbacks.append(PredictionWriter(given.out))
        if self.subcommand in ("validate", "test") and given.get("generation_metrics"):
            callbacks.append(given.generation_metrics)
        config = dict(given["trainer"])
        loggers = config.pop("logger", None)
        if self.subcommand == "fit" and not config.get("fast_dev_run"):
            kwargs["logger"] = self._open_run(loggers)
            kwargs["default_root_dir"] = str(self.run_dir)
            callbacks.append(self.record)
        else:
            kwargs["logger"] = False if loggers is None else loggers
        kwargs.setdefault("enable_checkpointing", self.subcommand == "fit" and not config.get("fast_dev_run"))
        if not kwargs["enable_checkpointing"]:
            callbacks = [c for c in callbacks if not isinstance(c, BestAndLast)]
        trainer = self._instantiate_trainer({**config, **kwargs}, callbacks)
        FastEpochLoop.install(trainer)
        return trainer

    def _open_run(self, more: Any) -> list[Any]:
        """Make or find the run folder and the loggers that write there."""
        resumed = os.environ.get("ZOO_RESUME")
        config = option(self.argv, "-c", "--config")
        name = record.name(config, self._model_name, self.datamodule)
        self.run_dir = record.folder(name, self.own.run_dir, resumed)
        self.record = record.RunRecord(self.run_dir, self._dump(), shlex.join(["zoo", *self.typed]))
        upto = steps_done(Path(self.own.ckpt_path)) if resumed else None
        return record.loggers(self.run_dir, self.own.logger, more, self._dump, upto)

    def _dump(self) -> dict[str, Any]:
        parser = self._subcommand_parsers[str(self.subcommand)]
        text = parser.dump(self.own, skip_none=False, skip_link_targets=False, skip_validation=True, format="yaml")
        config = yaml.safe_load(text)
        for key in ("config", "ckpt_path", "resume", "run_dir"):
            config.pop(key, None)
        return config

    # Running ----------------------------------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        kwargs = self._prepare_subcommand_kwargs(subcommand)
        getattr(self, subcommand.replace("-", "_"))(**kwargs)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if "ckpt_path" in kwargs:
            kwargs["weights_only"] = True
        if "verbose" in kwargs:
            kwargs["verbose"] = False
        if subcommand == "predict":
            kwargs["return_predictions"] = False
        return kwargs

    def fit(self, **kwargs: Any) -> None:
        if is_main_process():
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
        if self.record is not None and self.record.resumed and not self.record.began:
            print_trained_already(self.trainer, resume_command(self.record.folder, self.typed))
        else:
            print_end_of_fit(self.trainer, self.run_dir, self.checkpoints, time.monotonic() - began)
        if not all(is_finite(weight.detach()) for weight in self.model.parameters()):
            raise NonFiniteError("the weights are not finite any more; --nan_guard NaNGuard stops before and says why")

    def _interrupt(self, *_: Any) -> None:
        if self.checkpoints.interrupted:
            raise KeyboardInterrupt
        self.checkpoints.interrupted = True
        if is_main_process():
            print("\nCtrl-C: finishing this step and saving a checkpoint; once more to stop at once", file=sys.stderr)

    def diagnose(self, **kwargs: Any) -> None:
        raise SystemExit(trainer.diagnose(self.trainer, self.model, self.datamodule, self.own.json))

    def lr_find(self, **kwargs: Any) -> None:
        finder = self.config_init["lr-find"].get("lr_finder") or LRFinder(dirpath=".")
        trainer.lr_find(self.trainer, self.model, self.datamodule, finder)

    def show_data(self, **kwargs: Any) -> None:
        from zoo.cli.commands.show_data import show_data

        name = record.name(option(self.argv, "-c", "--config"), self._model_name, self.datamodule)
        print(show_data(self.datamodule, Path(self.own.out or run_folder.ROOT / name / "data.png")))

    def plan(self, **kwargs: Any) -> None:
        trainer.plan(self.trainer, self.model, self.datamodule, self.config_init["plan"])

    def _trained(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if not validation.has_weights(self.own) and is_main_process():
            print(f"zoo: no --ckpt_path: {self._model_name} as it is built, untrained", file=sys.stderr)
        return kwargs

    def validate(self, **kwargs: Any) -> None:
        print_metrics(self.trainer.validate(**self._trained(kwargs)), self.model)
        print_samples(self.trainer)

    def test(self, **kwargs: Any) -> None:
        print_metrics(self.trainer.test(**self._trained(kwargs)), self.model)
        print_samples(self.trainer)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, MisclassifiedImages) and callback.written:
                print(f"  plots: {', '.join(relative(path) for path in callback.written)}")

    def predict(self, **kwargs: Any) -> None:
        out = self.own.get("out")
        if out is None:
            raise UserError("predict needs a file to write to: --out predictions.csv (or .jsonl)")
        self.trainer.predict(**self._trained(kwargs))
        if is_main_process():
            writer = next(c for c in self.trainer.callbacks if isinstance(c, PredictionWriter))  # type: ignore
            print(f"{writer.rows} predictions in {out}")


def main(args: list[str] | None = None, callbacks: Sequence[L.Callback] = ()) -> int:
    """Run a command; return its exit code.

    0 done, 1 a check said no, 2 a mistake of the user (one line on stderr), 3 training became non-finite, 130 Ctrl-C.
    """
    typed = argv = list(sys.argv[1:] if args is None else args)
    quiet()
    os.environ.pop("ZOO_RUN_DIR", None) if is_main_process() else None
    cli: ZooCLI | None = None
    try:
        allow_imports(options(argv, "--allow-import"))
        argv = expand_resume(without_option(argv, "--allow-import"))
        own = {"verify": trainer.verify, "export": export.run, "generate": generate.run, "sample": sample.run}
        if argv and argv[0] in own:
            return own[argv[0]](argv[1:])
        cli = ZooCLI.__new__(ZooCLI)  # bound before it runs, so that what it has made can be cleaned up
        cli.__init__(argv, callbacks, typed)
        return 0
    except KeyboardInterrupt:
        return interrupted(cli)
    except SystemExit as stop:
        if cli is not None and getattr(getattr(cli, "checkpoints", None), "interrupted", False):
            return interrupted(cli)
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except NonFiniteError as error:
        print(f"zoo: error: {error}", file=sys.stderr)
        return 3
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


def interrupted(cli: ZooCLI | None) -> int:
    """After Ctrl-C: say how to go on, where there is a checkpoint to go on from."""
    folder = getattr(cli, "run_dir", None)
    if cli is not None and folder is not None and is_main_process() and run_folder.saved(folder):
        print(f"stopped; to go on: {resume_command(folder, cli.typed)}", file=sys.stderr)
    return 130


def discard_failed(cli: ZooCLI | None) -> None:
    folder = getattr(cli, "run_dir", None)
    if folder is not None and is_main_process() and not os.environ.get("ZOO_RESUME"):
        run_folder.discard(folder)
