"""The command line: LightningCLI with facts of the data, run folders, resume, and errors of one line."""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from zoo import commands, runs
from zoo.callbacks import (
    EMA,
    EarlyStopping,
    FineTuning,
    GradientDiagnostics,
    LRFinder,
    NaNGuard,
    NonFiniteError,
    PredictionsFile,
    Progress,
    RunCheckpoints,
    StepSeed,
)
from zoo.callbacks.ema import load_ema, with_ema
from zoo.checkpoint_files import fits, hyperparameters, is_url, readable_checkpoint, steps_done
from zoo.commands import ZooTrainer
from zoo.data.base import FACTS
from zoo.loggers import MetricsCSV, tensorboard_logger, wandb_logger
from zoo.parsing import UserError, ZooParser, allow_imports, check_config, one_line
from zoo.processes import is_main_process
from zoo.report import print_end_of_fit, print_metrics

# Short names are found among the classes that are imported already.
for _room in ("callbacks", "data", "layers", "losses", "models", "optim", "tasks"):
    importlib.import_module(f"zoo.{_room}")

Weights = Literal["auto", "ema", "raw"]
LoggerName = Literal["csv", "wandb", "tensorboard"]
# Callbacks with a key of their own, so that two configs combine without one list replacing the other.
SLOTS: dict[str, tuple[Any, str]] = {
    "ema": (EMA, "average the weights, for validation and after"),
    "nan_guard": (NaNGuard, "stop at the first non-finite value and name what made it"),
    "early_stopping": (EarlyStopping, "stop when a metric no longer improves"),
    "fine_tuning": (FineTuning, "freeze, and unfreeze by plan"),
    "lr_finder": (LRFinder, "find the learning rate before training starts"),
    "gradients": (GradientDiagnostics, "measure gradients, updates and dead units"),
}


class ZooCLI(LightningCLI):
    """LightningCLI as zoo wants it. Any LightningModule and LightningDataModule will do, not only zoo's."""

    def __init__(self, args: list[str], callbacks: Sequence[L.Callback] = (), typed: Sequence[str] = ()) -> None:
        self.argv, self.extra_callbacks, self.typed = args, list(callbacks), typed or args
        self.run_dir: Path | None = None
        self.resumed_from: Path | None = None
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
        own = {name: {"model", "datamodule"} for name in ("plan", "lr-find", "diagnose")}
        return LightningCLI.subcommands() | own

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for slot, (kind, text) in SLOTS.items():
            parser.add_argument(f"--{slot}", type=kind | None, default=None, help=f"{text}; null is off")
        parser.add_argument(
            "--checkpoint",
            type=RunCheckpoints | None,
            default=None,
            help="which checkpoints to keep; null is the usual",
        )
        parser.add_argument(
            "--logger", type=list[LoggerName] | LoggerName, default="csv", help="beside metrics.csv, which is always"
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
        if subcommand == "predict":
            parser.add_argument("--out", type=str | None, default=None, help="file for the predictions, .csv or .jsonl")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        subcommand = next((a for a in self.argv if a in self._subcommand_parsers), None)
        checkpoint = option(self.argv, "--ckpt_path")
        if subcommand and checkpoint and not is_url(checkpoint):
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
        self.datamodule = self._build("data") if self.own.get("data") else None
        self._hand_over_facts()
        self.model = self._build("model")
        rest = Namespace({k: v for k, v in self.own.items() if k not in ("data", "model", "config")})
        self.config_init = self.parser.instantiate_classes(
            Namespace({"subcommand": self.subcommand, self.subcommand: rest})
        )
        if self.own.get("ckpt_path") and not is_url(self.own.ckpt_path):
            fits(Path(self.own.ckpt_path), self.model)
            self._choose_weights(self.own.get("weights"))
        self.trainer = self.instantiate_trainer()

    def _build(self, key: str) -> Any:
        self.__dict__.pop("config_dump", None)  # of which the hyperparameters are taken
        part = Namespace({"subcommand": self.subcommand, self.subcommand: Namespace({key: self.own[key]})})
        return self.parser.instantiate_classes(part)[str(self.subcommand)][key]

    def _choose_weights(self, weights: Weights | None) -> None:
        """Let the module, zoo's or not, load averages or raw weights from its checkpoint."""
        if weights is None:
            return
        original = self.model.on_load_checkpoint

        def load(checkpoint: dict[str, Any]) -> None:
            chosen = with_ema(checkpoint, weights)
            averages = checkpoint.pop("ema_params", {})
            checkpoint.update(chosen)
            if "state_dict" not in checkpoint and weights != "raw":  # sharded weights are in the module already
                load_ema(self.model, averages)
            original(checkpoint)

        self.model.on_load_checkpoint = load

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
        given = self.config_init[str(self.subcommand)]
        callbacks: list[Any] = [Progress(), StepSeed(), *self.extra_callbacks]
        if self.subcommand == "fit":
            callbacks += [given[slot] for slot in SLOTS if given.get(slot) is not None]
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
            path = Path(config).resolve()
            saved = path.name == "config.yaml" and (path.parent / "environment.json").exists()
            return path.parent.parent.name if saved else path.stem
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
        if self.run_dir is not None and is_main_process():
            if not os.environ.get("ZOO_RESUME"):
                text = yaml.safe_dump(self._dump(), sort_keys=False)
                runs.write_text(self.run_dir / "config.yaml", text)
            devices = f"{self.trainer.world_size} x {type(self.trainer.accelerator).__name__}"
            command = shlex.join(["zoo", *self.typed])
            entry = runs.environment(command, self.own.get("seed_everything"), devices)
            runs.write_environment(self.run_dir, entry)
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
        if is_main_process():
            print_end_of_fit(self.trainer, self.run_dir, self.checkpoints, time.monotonic() - began)

    def _interrupt(self, *_: Any) -> None:
        if self.checkpoints.interrupted:
            raise KeyboardInterrupt
        self.checkpoints.interrupted = True
        if is_main_process():
            print("\nCtrl-C: finishing this step and saving a checkpoint; once more to stop at once", file=sys.stderr)

    def diagnose(self, **kwargs: Any) -> None:
        raise SystemExit(commands.diagnose(self.trainer, self.model, self.datamodule, self.own.json))

    def lr_find(self, **kwargs: Any) -> None:
        finder = self.config_init["lr-find"].get("lr_finder") or LRFinder(dirpath=".")
        commands.lr_find(self.trainer, self.model, self.datamodule, finder)

    def plan(self, **kwargs: Any) -> None:
        commands.plan(self.trainer, self.model, self.datamodule, self.config_init["plan"])

    def _trained(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if not kwargs.get("ckpt_path") and is_main_process():
            print(f"zoo: no --ckpt_path: {self._model_name} as it is built, untrained", file=sys.stderr)
        return kwargs

    def validate(self, **kwargs: Any) -> None:
        print_metrics(self.trainer.validate(**self._trained(kwargs)), self.model)

    def test(self, **kwargs: Any) -> None:
        print_metrics(self.trainer.test(**self._trained(kwargs)), self.model)

    def predict(self, **kwargs: Any) -> None:
        out = self.own.get("out")
        if out is None:
            raise UserError("predict needs a file to write to: --out predictions.csv (or .jsonl)")
        self.trainer.predict(**self._trained(kwargs))
        if is_main_process():
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


def verify(argv: list[str]) -> int:
    """``zoo verify resume -c CONFIG``: prove that a killed and resumed run equals the one that was never killed."""
    from zoo.verify import resume

    if argv[:1] != ["resume"] or len(argv) < 3:
        raise UserError("usage: zoo verify resume -c CONFIG [--kills 4] [options of zoo fit]")
    kills = option(argv, "--kills") or "4"
    if not kills.isdigit() or int(kills) < 1:
        raise UserError(f"--kills is a number from 1 up, got {kills}")
    for config in [*options(argv, "-c"), *options(argv, "--config")]:
        check_config(config)
    found = resume(without_option(argv[1:], "--kills"), int(kills))
    print(f"differs: {found}" if found else "resumed equals uninterrupted, bit for bit")
    return 1 if found else 0


def export(argv: list[str]) -> int:
    """``zoo export --ckpt_path FILE --out FILE.safetensors [--weights raw|ema]``: write the network's weights alone."""
    from safetensors.torch import save_file

    path, out, weights = option(argv, "--ckpt_path"), option(argv, "--out"), option(argv, "--weights") or "auto"
    if path is None or out is None or not out.endswith(".safetensors"):
        raise UserError("usage: zoo export --ckpt_path FILE --out FILE.safetensors [--weights raw|ema]")
    readable_checkpoint(Path(path))
    state = with_ema(torch.load(path, weights_only=True, map_location="cpu"), weights)["state_dict"]  # type: ignore
    kept = {k.removeprefix("net."): v.clone().contiguous() for k, v in state.items() if k.startswith("net.")} or state
    new = Path(out).with_name(Path(out).name + ".new")
    save_file(kept, new)
    os.replace(new, out)
    print(f"{len(kept)} tensors in {out}")
    return 0


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
        if argv[:1] in (["verify"], ["export"]):
            return {"verify": verify, "export": export}[argv[0]](argv[1:])
        cli = ZooCLI.__new__(ZooCLI)  # bound before it runs, so that what it has made can be cleaned up
        cli.__init__(argv, callbacks, typed)
        return 0
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        if cli is not None and getattr(getattr(cli, "checkpoints", None), "interrupted", False):
            return 130
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


def discard_failed(cli: ZooCLI | None) -> None:
    folder = getattr(cli, "run_dir", None)
    if folder is not None and is_main_process() and not os.environ.get("ZOO_RESUME"):
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
    """Silence Lightning's hints that do not apply here, or say again what zoo says."""
    if torch.cuda.device_count() == 0:
        # Lightning sets this to 1, by which Adam looks for NVIDIA's library at every single step: 0.07 ms
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*Using `DistributedSampler` with the dataloaders.*",
        ".*enable_checkpointing.*",
        ".*your dataloader is not resumable.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*LeafSpec.*",
        ".*No positive samples in targets.*",
        ".*No negative samples in targets.*",
    ):
        warnings.filterwarnings("ignore", text)
