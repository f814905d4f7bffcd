"""One checkpoint, opened once: what it was made by, its weights, and the module built from it."""

from __future__ import annotations

import io
import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from zoo.checkpoints.ema_weights import Weights, with_ema
from zoo.checkpoints.hyperparameters import check_hyperparameters, check_values, drop_choices_of_user
from zoo.checkpoints.integrity import verify, verify_folder
from zoo.checkpoints.renames import FORMAT, FORMAT_KEY, upgrade
from zoo.checkpoints.sharded import OTHER_VALUES, check_sharded
from zoo.distributed import is_main_process
from zoo.errors import UserError
from zoo.terminal import printable
from zoo.trust.class_paths import checked
from zoo.trust.memory import budget_of_checkpoint

if TYPE_CHECKING:
    import lightning as L


# Errors of values of another kind than expected.
DAMAGE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError)
# Describes the adapter in a checkpoint that holds no other weights.
ADAPTER_KEY = "adapter"


class Checkpoint:
    """A checkpoint of ``zoo fit`` or Lightning, in a file or sharded in a folder, brought to the present format.

    Opening reads no weights and runs no code in the file. Files of older versions of zoo are read with present names.

    Args:
        path: the file or folder.
        model: class of the model, for a checkpoint without its class path (saved outside of ``zoo fit``).

    Raises:
        UserError: there is no such file, it is damaged, it holds more than tensors and plain values, or its
            hyperparameters are not such as zoo saves (see :mod:`zoo.checkpoints.hyperparameters`).
    """

    def __init__(self, path: str | Path, model: type | str | None = None) -> None:
        if is_url(str(path)):
            raise url_refused(str(path))
        self.path = Path(path)
        self._model_class = model
        if not self.path.exists():
            raise UserError(f"no checkpoint {path}")
        if (self.path / "checkpoints").is_dir():
            raise UserError(f"{path} is the folder of a run: give one of its checkpoints, {path}/checkpoints/best.ckpt")
        self.is_sharded = self.path.is_dir()
        if self.is_sharded:
            if is_main_process():  # one process reads all shards, not each of them
                verify_folder(self.path)
            check_sharded(self.path)
        self.metadata = self._read("meta")

    @classmethod
    def of_content(cls, content: dict[str, Any], path: str | Path = "the checkpoint") -> Checkpoint:
        """Return a checkpoint that was read already, in the present format, to build its data from.

        Args:
            content: of the file; without weights, as far as only data are built.
            path: what it is called in messages.
        """
        checkpoint = cls.__new__(cls)
        checkpoint.path = Path(path)
        checkpoint._model_class = None
        checkpoint.is_sharded = False
        checkpoint.metadata = content
        return checkpoint

    @cached_property
    def hyperparameters(self) -> dict[str, Any]:
        """Class path and arguments of the model and the data, as defaults of a parser: ``{"model": {...}, ...}``.

        Raises:
            UserError: they name what a checkpoint may not name.
        """
        check_hyperparameters(self.metadata, self.path)
        drop_choices_of_user(self.metadata)
        sections = {}
        for section, key in (("model", "hyper_parameters"), ("data", "datamodule_hyper_parameters")):
            arguments = dict(self.metadata.get(key) or {})
            arguments.pop("_instantiator", None)
            if "_class_path" in arguments:
                class_path = arguments.pop("_class_path")
                sections[section] = {"class_path": class_path, "init_args": arguments}
        return sections

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Arguments of the model, whether or not the checkpoint names its class."""
        arguments = self.metadata.get("hyper_parameters") or {}
        return {name: value for name, value in arguments.items() if name not in ("_class_path", "_instantiator")}

    @property
    def is_adapter(self) -> bool:
        """Whether the checkpoint holds an adapter (LoRA) alone, which needs the base that it was trained on."""
        return ADAPTER_KEY in self.metadata

    def refuse_adapter(self) -> None:
        """Raise a UserError for an adapter in place of a whole model."""
        if self.is_adapter:
            description = self.metadata[ADAPTER_KEY]
            base = description.get("base") if isinstance(description, dict) else None
            which = f" ({printable(base, 200)})" if base else ""
            raise UserError(
                f"{self.path} holds a LoRA adapter alone: give the model that it was trained on{which}, "
                f"and the adapter as --adapter {self.path}"
            )

    @property
    def has_ema(self) -> bool:
        return bool(self.metadata.get("ema_params"))

    @property
    def steps_done(self) -> int:
        """Number of the first step still to come, as the log counts steps."""
        from zoo._lightning import logged_step_of

        states = self.metadata.get("callbacks") or {}
        with damage_in_one_line(self.path, "its progress is not what Lightning saves"):
            between_epochs = states.get("BestAndLast", {}).get("between_epochs", False)
            step = int(logged_step_of(self.metadata))
        # Within an epoch Lightning counts a step only after the checkpoint is saved.
        return step if between_epochs else step + 1

    def state_dict(self, weights: Weights = "auto") -> dict[str, Tensor]:
        """Read the weights, mapped into memory from the file.

        Args:
            weights: ``auto`` takes EMA weights if there are any, ``ema`` requires them, ``raw`` takes the trained ones.

        Raises:
            UserError: the checkpoint is sharded or holds no weights, or no EMA weights.
        """
        return self._read_weights(weights)["state_dict"]

    def check_weights(self, weights: Weights) -> None:
        """Raise a UserError where EMA weights are required and there are none."""
        if weights == "ema" and not self.has_ema:
            raise UserError(f"{self.path} holds no EMA weights: it was saved without EMA, or before EMA began")

    def check(self, model: L.LightningModule) -> None:
        """Compare names and shapes of the weights with those of a model, before Lightning fails on them.

        Raises:
            UserError: they differ, and the model's ``strict_loading`` is set.
        """
        state = self.metadata.get("state_dict")
        own = model.state_dict()
        if state is None or not own:  # sharded, or a model that is built later, in configure_model
            return
        if not model.strict_loading or self.is_adapter:
            return
        if differences := state_differences(own, state):
            raise UserError(f"{self.path} was not made by this {type(model).__name__}: {'; '.join(differences)}")

    def build(self, weights: Weights = "auto") -> L.LightningModule:
        """Build the module from its class path and arguments, load its weights, and put it in eval mode.

        Raises:
            UserError: the checkpoint does not name a class, or one that may not be imported; or see ``state_dict``.
        """
        if not self.is_sharded and "state_dict" not in self.metadata:
            raise UserError(f"{self.path} is not a checkpoint of a model: it holds no state_dict")
        if "model" not in self.hyperparameters or self.is_sharded:
            raise UserError(
                f"{self.path} does not name the class of its model: a checkpoint of `zoo fit` in one file is needed"
            )
        self.refuse_adapter()
        model = self._instantiate("model")
        self.check(model)
        content = self._read_weights(weights)
        with damage_in_one_line(self.path, "its model cannot be loaded"):
            model.on_load_checkpoint(content)
            model.load_state_dict(content["state_dict"])
        return model.eval()

    def build_data(self) -> L.LightningDataModule:
        """Build the datamodule from its class path and arguments.

        Raises:
            UserError: the checkpoint does not name its class, or one that may not be imported.
        """
        if "data" not in self.hyperparameters:
            raise UserError(f"{self.path} does not name the class of its data: a checkpoint of `zoo fit` is needed")
        return self._instantiate("data")

    # Helpers --------------------------------------------------------------------------------------------------------

    def _read(self, device: str) -> dict[str, Any]:
        file = self.path / OTHER_VALUES if self.is_sharded else self.path
        if self.is_sharded and not file.exists():
            return {}
        content = read_tensors(file, device)
        if not isinstance(content, dict):
            raise UserError(f"{self.path} holds a {type(content).__name__}, which is not a checkpoint")
        check_values(content, self.path)
        with damage_in_one_line(self.path, "it cannot be read with present names"):
            upgrade(content, self._model_class)
        return content

    def _read_weights(self, weights: Weights) -> dict[str, Any]:
        """Read the whole content, with the chosen weights."""
        if "state_dict" not in self.metadata:
            raise UserError(f"{self.path} holds no state_dict in one file")
        self.check_weights(weights)
        return with_ema(self._read("cpu"), weights)

    def _instantiate(self, section: Literal["model", "data"]) -> Any:
        import lightning as L
        from lightning.pytorch.cli import LightningArgumentParser

        saved = self.hyperparameters[section]
        arguments = dict(saved["init_args"])
        base: type = L.LightningDataModule
        if section == "model":
            base = L.LightningModule
            arguments.pop("compile", None)  # compiling takes longer than it saves in a call or two
        parser = LightningArgumentParser(exit_on_error=False)
        parser.add_lightning_class_args(base, section, subclass_mode=True)
        config = {section: {"class_path": saved["class_path"], "init_args": arguments}}
        try:
            problem = damage_in_one_line(self.path, f"the {section} that it describes cannot be built")
            with checked("checkpoint"), budget_of_checkpoint(self.metadata), problem:
                return parser.instantiate_classes(parser.parse_object(config))[section]
        except ArgumentError as error:
            raise ValueError(str(error)) from error


@contextmanager
def damage_in_one_line(path: Any, what: str) -> Iterator[None]:
    """Turn errors of values that are not what they should be into one line.

    Args:
        path: the checkpoint.
        what: what cannot be done with it.

    Raises:
        UserError: in place of such an error.
    """
    try:
        yield
    except DAMAGE as error:
        raise UserError(f"{path}: {what}: {printable(error, 200)}") from error


def is_url(path: str) -> bool:
    return re.match(r"\w+://", path) is not None


def read_tensors(path: Any, device: str) -> Any:
    """Read a file of ``torch.save`` that holds tensors and plain values only, mapped into memory.

    Args:
        path: the file, or an open one, which is read from its beginning and left there.
        device: of the tensors; ``meta`` reads their names and shapes alone.
    """
    is_open = hasattr(path, "seek")
    if not is_open:
        verify(path)
    try:
        if is_open:
            path.seek(0)
        content = torch.load(path, weights_only=True, map_location=device, mmap=not is_open)
        if is_open:
            path.seek(0)
        return content
    except Exception as error:  # torch, pickle and zipfile raise whatever a damaged file brings them to
        if "Weights only load failed" in str(error) or "weights_only" in str(error):
            raise UserError(f"{path} holds Python objects, which could run code; only plain tensors are read") from None
        raise UserError(f"{path} is not a whole checkpoint") from None


def state_differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Describe in which names and shapes a state differs from a model's own: one text for each kind of difference."""
    reshaped = []
    for name, tensor in own.items():
        theirs = state.get(name)
        if theirs is not None and not isinstance(theirs, Tensor) and isinstance(tensor, Tensor):
            reshaped.append(f"{name} a {type(theirs).__name__} instead of a tensor")
        elif isinstance(theirs, Tensor) and theirs.shape != tensor.shape:
            reshaped.append(f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}")
    differences = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": reshaped,
    }
    texts = []
    for kind, names in differences.items():
        if names:
            more = ", ..." if len(names) > 2 else ""
            texts.append(f"{len(names)} {kind} ({', '.join(names[:2])}{more})")
    return texts


def load_upgraded(path: Any, cls: type) -> Any:
    """Return what Lightning's ``load_from_checkpoint`` may read in place of a checkpoint, once it was checked.

    Lightning reads hyperparameters before any hook of the module runs, so an older file is upgraded in memory.

    Args:
        path: as ``load_from_checkpoint`` takes it: a file, or an open one.
        cls: the module or datamodule that is loaded.

    Raises:
        UserError: it is a URL, or not a checkpoint that may be built from.
    """
    is_file = isinstance(path, (str, Path))
    if is_file and is_url(str(path)):
        raise url_refused(str(path))
    if is_file and not Path(path).is_file():
        raise UserError(f"no checkpoint {path}")
    metadata = read_tensors(path, "meta")
    if not isinstance(metadata, dict):
        raise UserError(f"{path} holds a {type(metadata).__name__}, which is not a checkpoint")
    check_values(metadata, path)
    is_current = metadata.get(FORMAT_KEY) == FORMAT
    if not is_current:
        upgrade(metadata, model=cls, data=cls)
    with checked("checkpoint", cls):
        check_hyperparameters(metadata, path, cls)
    if is_current and not drop_choices_of_user(metadata):
        return path
    content = read_tensors(path, "cpu")
    upgrade(content, model=cls, data=cls)
    drop_choices_of_user(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return buffer


def url_refused(url: str) -> UserError:
    """Return the error for a URL in place of a file: what is fetched could be another file each time."""
    return UserError(f"{url} is a URL: download the checkpoint, and give the file")
