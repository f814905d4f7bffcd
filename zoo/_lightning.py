"""What zoo needs of Lightning, jsonargparse and argparse beyond their public names: one function for each private name.

A new version may move any of them. Then the function's test in ``tests/test_lightning_names.py`` fails and says which.
torch's private names stand in ``zoo/_torch.py``, and the training loop in ``zoo/runs/fast_epoch_loop.py``.
"""

from __future__ import annotations

import functools
import importlib
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from packaging.specifiers import SpecifierSet

# The versions in which zoo puts code of its own in place of private code: the training loop, and the resolver of short
# class names. With others it does without.
TESTED = {"lightning": ">=2.6.6,<2.7", "jsonargparse": ">=4.52,<4.54"}

# The attribute of a LightningModule that names the hook it is in. Lightning sets it forty times a step.
HOOK_NAME = "_current_fx_name"


def untested(package: str) -> str | None:
    """Say that a package's version is not among the tested ones; None where it is.

    Args:
        package: a key of ``TESTED``.
    """
    version = importlib.import_module(package).__version__
    if SpecifierSet(TESTED[package]).contains(version, prereleases=True):
        return None
    return f"{package} {version} is not among the tested versions, {TESTED[package]}"


# Where a fit is -------------------------------------------------------------------------------------------------------


def accumulates(trainer: Any) -> bool:
    """Whether the gradient of this batch is kept for a later optimizer step."""
    return trainer.fit_loop._should_accumulate()


def epoch_done(trainer: Any) -> bool:
    """Whether this batch is the last one of its epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def validates_next(trainer: Any) -> bool:
    """Whether validation follows this batch."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def logged_step(trainer: Any) -> int:
    """The step under which Lightning logs: windows of accumulation that are over, whatever the optimizers did."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def logged_step_of(checkpoint: dict[str, Any]) -> int:
    """The same, when a checkpoint was written; 0 where it is not of a fit."""
    loops = (checkpoint.get("loops") or {}).get("fit_loop", {})
    return loops.get("epoch_loop.state_dict", {}).get("_batches_that_stepped", 0)


def end_restart(trainer: Any) -> None:
    """Let Lightning take this epoch for a whole one, not for the rest of one that a checkpoint was saved in.

    The public property does not do in a run that ``max_steps`` limits: there it stays true.
    """
    trainer.fit_loop._restarting = False


def leave_fit() -> NoReturn:
    """End a fit from a hook in good order, with teardown and without an error, as Lightning's tuner does."""
    from lightning.pytorch.trainer.call import _TunerExitException

    raise _TunerExitException


# Batches --------------------------------------------------------------------------------------------------------------


def training_batches(trainer: Any) -> CombinedLoader:
    """A second reader of the training data: the loaders of the fit, their mode and limits, iterators of its own."""
    own = trainer.fit_loop._combined_loader
    again = CombinedLoader(own.iterables, own._mode)
    again.limits = own.limits
    return again


def batch_to_device(trainer: Any, batch: Any) -> Any:
    """A batch of the loader as ``training_step`` gets it: converted, on its device, through all transfer hooks."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def step_arguments(module: L.LightningModule, batch: Any, batch_idx: int) -> tuple[Any, ...]:
    """What Lightning calls ``training_step`` with, which need not take an index. All names here are public."""
    takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    return (batch, batch_idx) if takes_index else (batch,)


# Modules and loggers --------------------------------------------------------------------------------------------------


def trainer_of(module: L.LightningModule) -> Any:
    """The trainer that a module is attached to, or None. All names here are public."""
    if module.fabric is not None:  # module.trainer would be a stand-in that knows little
        return None
    try:
        return module.trainer
    except RuntimeError:
        return None


def forget_hyperparameter(owner: Any, name: str) -> None:
    """Take a name out of ``hparams``, and out of their first state, which goes to loggers.

    Args:
        owner: a module or datamodule.
        name: of an argument; need not be among them.
    """
    owner.hparams.pop(name, None)
    vars(owner).get("_hparams_initial", {}).pop(name, None)


def drop_anonymous(logger: Any) -> None:
    """Keep a ``WandbLogger`` from passing on ``anonymous``, which Lightning always does and wandb warns of."""
    logger._wandb_init.pop("anonymous", None)


# Parsers --------------------------------------------------------------------------------------------------------------


def option_strings(parser: ArgumentParser) -> set[str]:
    """All options of an argparse parser, such as ``--out`` and ``-o``."""
    return {text for action in parser._actions for text in action.option_strings}


def set_name_resolver(resolve: Callable[[Callable[[Any, str], str], Any, str], str]) -> bool:
    """Let a function of ours find the class path that a short class name stands for.

    jsonargparse refuses a name that several classes have, and leaves nobody the choice.

    Args:
        resolve: called with jsonargparse's own resolver, the base class or classes, and the name.

    Returns:
        Whether jsonargparse still has the function that is replaced.
    """
    from jsonargparse import _typehints

    original = getattr(_typehints, "resolve_class_path_by_name", None)
    if original is None:
        return False
    original = getattr(original, "__wrapped__", original)  # ours may be there already

    @functools.wraps(original)
    def resolver(cls: Any, name: str) -> str:
        return resolve(original, cls, name)

    _typehints.resolve_class_path_by_name = resolver
    return True


def subclass_paths(base: Any) -> list[str]:
    """Class paths of all imported subclasses of a class, as jsonargparse lists them for a short name."""
    from jsonargparse import _typehints

    return _typehints.get_all_subclass_paths(base)
