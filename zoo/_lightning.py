"""The private names of Lightning and jsonargparse that zoo needs, one function each.

A new version may move any of them. Then the function's test in ``tests/test_lightning_names.py`` fails and says which.
torch's private names stand in ``zoo/_torch.py``, and the training loop in ``zoo/runs/fast_epoch_loop.py``.
"""

from __future__ import annotations

import copy
import functools
import importlib
import re
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import jsonargparse
import lightning as L
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from packaging.specifiers import SpecifierSet
from torch import Tensor

from zoo.errors import UserError

# The versions for which zoo replaces private code: the training loop, and the resolver of short class names. With other
# versions their own code runs.
TESTED = {"lightning": ">=2.6.6,<2.7", "jsonargparse": ">=4.52,<4.54"}

# The attribute of a LightningModule with the name of the hook that runs. Lightning sets it forty times a step.
HOOK_NAME = "_current_fx_name"


def untested(package: str) -> str | None:
    """Return a sentence about the version of a package that is not among the tested ones; None if it is.

    Args:
        package: a key of ``TESTED``.
    """
    version = importlib.import_module(package).__version__
    if SpecifierSet(TESTED[package]).contains(version, prereleases=True):
        return None
    return f"{package} {version} is not among the tested versions, {TESTED[package]}"


# Progress of a fit ----------------------------------------------------------------------------------------------------


def accumulates(trainer: Any) -> bool:
    """Return whether gradients still accumulate after this batch, without an optimizer step."""
    return trainer.fit_loop._should_accumulate()


def epoch_done(trainer: Any) -> bool:
    """Return whether this batch is the last one of its epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def validates_next(trainer: Any) -> bool:
    """Return whether validation follows this batch."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def logged_step(trainer: Any) -> int:
    """Return the step that Lightning logs under: accumulation windows so far, with one optimizer or several."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def logged_step_of(checkpoint: dict[str, Any]) -> int:
    """Return the step that was logged under when a checkpoint was written; 0 if it is not of a fit."""
    loops = (checkpoint.get("loops") or {}).get("fit_loop", {})
    return loops.get("epoch_loop.state_dict", {}).get("_batches_that_stepped", 0)


def end_restart(trainer: Any) -> None:
    """Make Lightning treat this epoch as a whole one, rather than the rest of one that was resumed.

    The public property does not suffice: it stays true in a run that ``max_steps`` limits.
    """
    trainer.fit_loop._restarting = False


def checks_at_epoch_end(callback: Any) -> bool:
    """Return whether Lightning's ``EarlyStopping`` looks at its metric after training epochs, not after validations."""
    return bool(callback._check_on_train_epoch_end)


def cluster_environment(trainer: Any) -> Any:
    """Return what Lightning knows of the cluster that a trainer runs on, such as a ``SLURMEnvironment``."""
    return trainer._accelerator_connector.cluster_environment


def restart_validation(checkpoint: dict[str, Any]) -> None:
    """Make a fit that is resumed from a checkpoint begin with a whole validation.

    Args:
        checkpoint: that was saved in the middle of this validation.
    """
    counts = {"ready": 0, "completed": 0, "started": 0, "processed": 0}
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    # So Lightning recognises a validation that was left: a batch was started that was not processed.
    progress["total"] = counts | {"ready": 1, "started": 1}
    progress["current"] = counts
    progress["is_last_batch"] = False


def begin_validation(trainer: Any) -> None:
    """End the restart that ``restart_validation`` has prepared: the validation that begins now is a whole one.

    All names here are public.
    """
    total = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
    if total.started != total.processed:
        total.reset()


def leave_fit() -> NoReturn:
    """End a fit from within a hook, with teardown and without an error, as Lightning's tuner does."""
    from lightning.pytorch.trainer.call import _TunerExitException

    raise _TunerExitException


# Batches --------------------------------------------------------------------------------------------------------------


def training_batches(trainer: Any) -> CombinedLoader:
    """Return the loaders of a fit with their mode and limits, and with iterators of their own."""
    own = trainer.fit_loop._combined_loader
    again = CombinedLoader(own.iterables, own._mode)
    again.limits = own.limits
    return again


def batch_to_device(trainer: Any, batch: Any) -> Any:
    """Return a batch as ``training_step`` gets it: converted, on its device, after all transfer hooks."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def step_arguments(module: L.LightningModule, batch: Any, batch_idx: int) -> tuple[Any, ...]:
    """Return the arguments of ``training_step``, which need not take an index. All names here are public."""
    takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    return (batch, batch_idx) if takes_index else (batch,)


# Modules and loggers --------------------------------------------------------------------------------------------------


def trainer_of(module: L.LightningModule) -> Any:
    """Return the trainer that a module is attached to, or None. All names here are public."""
    if module.fabric is not None:  # module.trainer would be a stand-in with a few attributes
        return None
    try:
        return module.trainer
    except RuntimeError:
        return None


def log_global(module: L.LightningModule, name: str, value: Any, **options: Any) -> None:
    """Log a value that all processes have alike, without Lightning's advice to average it. All names here are public.

    Args:
        module: that logs it.
        name: of the value.
        value: a number or a tensor ``()``.
        options: of ``LightningModule.log``.
    """
    if module.trainer.world_size > 1:
        warnings.filterwarnings("ignore", rf".*self\.log\({re.escape(repr(name))}, \.\.\., sync_dist=True\)")
    module.log(name, value, batch_size=1, **options)


def weigh_logged_means() -> bool:
    """Make means that modules log with ``sync_dist=True`` exact where processes have unequal numbers of samples.

    Lightning averages the whole-number sums of batch sizes over the processes, and rounds them.

    Returns:
        Whether Lightning still has the class that is changed.
    """
    from lightning.pytorch.trainer.connectors.logger_connector import result

    metric = getattr(result, "_ResultMetric", None)
    if metric is None or not hasattr(metric, "compute"):
        return False
    original = getattr(metric.compute, "__wrapped__", metric.compute)  # ours may be there already

    @functools.wraps(original)
    def compute(self: Any) -> Any:
        count = getattr(self, "cumulated_batch_size", None)
        if isinstance(count, Tensor) and not count.is_floating_point():
            self.cumulated_batch_size = count.to(self.value.dtype)
        return original(self)

    metric.compute = compute
    return True


def forget_hyperparameter(owner: Any, name: str) -> None:
    """Remove a name from ``hparams`` and from their initial state, which goes to loggers.

    Args:
        owner: a module or datamodule.
        name: name of an argument, present or not.
    """
    owner.hparams.pop(name, None)
    vars(owner).get("_hparams_initial", {}).pop(name, None)


def drop_anonymous(logger: Any) -> None:
    """Remove ``anonymous`` from what a ``WandbLogger`` passes to wandb, which warns of it."""
    logger._wandb_init.pop("anonymous", None)


# Parsers --------------------------------------------------------------------------------------------------------------


def set_name_resolver(resolve: Callable[[Callable[[Any, str], str], Any, str], str]) -> bool:
    """Replace the function that finds the class path of a short class name.

    jsonargparse refuses a name that several classes have, and has no setting for it.

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


def share_long_lists() -> bool:
    """Let jsonargparse check a list of numbers or texts in a time that grows with its length, not with its square.

    It copies the whole list once for each element. A vocabulary of 1,600 words took 20 seconds in each command.

    Returns:
        Whether jsonargparse still has the function that is replaced.
    """
    from jsonargparse import _typehints

    if not hasattr(_typehints, "deepcopy"):
        return False
    _typehints.deepcopy = _copy_for_parser
    return True


def _copy_for_parser(value: Any) -> Any:
    """Return a deep copy in which lists that begin with a number or text are the same objects: nobody changes those."""
    if type(value) is dict:
        return {key: _copy_for_parser(item) for key, item in value.items()}
    if type(value) is list and value and isinstance(value[0], (str, int, float)):
        return value
    return copy.deepcopy(value)


def set_import_gate(gate: Callable[[str], Any]) -> None:
    """Ask a function for the object of each class path in a value before jsonargparse imports it.

    jsonargparse's own list of allowed imports goes by package, and accepts functions.

    Args:
        gate: gets a dotted path and returns its object, raises an error, or returns None to leave it to jsonargparse.

    Raises:
        UserError: this jsonargparse imports in another way, so that nothing would be checked.
    """
    from jsonargparse import _actions, _typehints

    for module in (_typehints, _actions):
        original = getattr(module, "import_object", None)
        if original is None:
            found = f"jsonargparse {jsonargparse.__version__} imports in a way that zoo cannot check"
            raise UserError(f"{found}: install one that is tested, {TESTED['jsonargparse']}")
        original = getattr(original, "__wrapped__", original)  # ours may be there already
        setattr(module, "import_object", _gated(original, gate))  # noqa: B010


def _gated(original: Callable[..., Any], gate: Callable[[str], Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def import_object(name: Any, check_path: bool = True) -> Any:
        is_path = isinstance(name, str) and "." in name and all(part.isidentifier() for part in name.split("."))
        if not check_path or not is_path:  # a path that stands in code, or none
            return original(name, check_path)
        found = gate(name)
        if found is None:
            return original(name, check_path)
        if not isinstance(found, type):
            original(name, check_path=False)  # which remembers the path of a function, to write it into a config
        return found

    return import_object


def set_yaml_loader(wrap: Callable[[Callable[[str], Any]], Callable[[str], Any]]) -> None:
    """Replace jsonargparse's loader of YAML, which it uses for configs and for values within them.

    Its public ``set_loader`` replaces that for configs only.

    Args:
        wrap: gets jsonargparse's own loader and returns another.
    """
    from jsonargparse import _loaders_dumpers

    original = jsonargparse.get_loader("yaml")
    original = getattr(original, "__wrapped__", original)  # ours may be there already
    loader = functools.wraps(original)(wrap(original))
    jsonargparse.set_loader("yaml", loader)
    if hasattr(_loaders_dumpers, "yaml_load"):
        _loaders_dumpers.yaml_load = loader


def subclass_paths(base: Any) -> list[str]:
    """Return the class paths of all imported subclasses of a class, as jsonargparse lists them for a short name."""
    from jsonargparse import _typehints

    return _typehints.get_all_subclass_paths(base)
