"""``zoo fit``: train a model."""

from __future__ import annotations

from typing import Any

name = "fit"
help = "train a model; the run is written to runs/<config name>/<n>/"
needs_trainer = True


def add_arguments(parser: Any) -> None:
    from typing import Literal

    from zoo.cli.common_options import CKPT_PATH_HELP, hide_options_of_lightning

    parser.add_argument("--ckpt_path", type=str | None, default=None, help=f"{CKPT_PATH_HELP}, to continue from")
    parser.add_argument("--run_dir", type=str | None, default=None, help="folder of the run; null numbers a new one")
    parser.add_argument(
        "--resume",
        type=str | None,
        default=None,
        help="continue a run in its own folder: RUN, or without a value the newest one",
    )
    parser.add_argument(
        "--data_changed",
        type=Literal["ok"] | None,
        default=None,
        help="ok: resume although the data are not those that the run was trained on",
    )
    hide_options_of_lightning(parser, "weights_only")


def trainer_arguments(cli: Any) -> dict[str, Any]:
    """Return the callbacks of the slots, and open the folder of the run unless this is a ``fast_dev_run``."""
    from zoo.callbacks import BestAndLast
    from zoo.cli.no_effect import NoEffect
    from zoo.cli.slots import SLOTS

    callbacks = []
    for slot in SLOTS:
        callback = cli.config_init.get(slot)
        if callback is not None:
            callbacks.append(callback)
    cli.checkpoints = cli.config_init.get("checkpoint") or BestAndLast()
    callbacks.append(cli.checkpoints)
    callbacks.append(NoEffect())
    if cli.config.trainer.get("fast_dev_run"):
        return {"callbacks": callbacks}
    loggers = cli.open_run()
    callbacks.append(cli.record)
    return {
        "callbacks": callbacks,
        "logger": loggers,
        "default_root_dir": str(cli.run_dir),
        "enable_checkpointing": True,
    }


def run(cli: Any) -> None:
    """Train, print a table at the end, and raise NonFiniteError if the weights are not finite."""
    import time

    from zoo.callbacks import NonFiniteError
    from zoo.callbacks.nan.tensors import is_finite
    from zoo.cli.report import print_end_of_fit, print_trained_already, resume_command
    from zoo.errors import Stopped

    print_model(cli)
    cli.trainer.use_fast_loop()
    began = time.monotonic()
    cli.signals.save = cli.checkpoints.interrupt
    try:
        cli.trainer.fit(
            cli.model,
            datamodule=cli.datamodule,
            ckpt_path=cli.config.ckpt_path,
            weights_only=True,
        )
    finally:
        cli.signals.save = None
    if cli.signals.received is not None:
        raise Stopped(cli.signals.received)
    if cli.record is not None and cli.record.resumed and not cli.record.trained:
        print_trained_already(cli.trainer, resume_command(cli.record.folder, cli.typed))
    else:
        print_end_of_fit(cli.trainer, cli.run_dir, cli.checkpoints, time.monotonic() - began)
    if not all(is_finite(weight.detach()) for weight in cli.model.parameters()):
        raise NonFiniteError(
            "the weights are no longer finite; --nan_guard NaNGuard stops earlier and names the operation"
        )


def print_model(cli: Any) -> None:
    """Print the model, its number of parameters, the data and the folder of the run."""
    from zoo.distributed import is_main_process

    if not is_main_process():
        return
    text = cli.model_name
    if cli.datamodule:
        text += f" on {type(cli.datamodule).__name__}"
    text += f": {sum(p.numel() for p in cli.model.parameters()):,} parameters"
    if cli.config_init.get("lora") is not None:
        text += f", {sum(p.numel() for p in cli.model.parameters() if p.requires_grad):,} of them trained"
    if cli.run_dir:
        text += f", run {cli.run_dir}"
    print(text)
