"""What a checkpoint, a file of weights, a tokenizer or a run holds, as ``zoo inspect`` prints it.

Everything is read as plain values with bounds, and of pickle only the names that it would call are listed.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.terminal import printable
from zoo.trust import class_paths
from zoo.trust.reading import parse_json_object, read_json, read_safetensors_header, read_yaml

MAX_PICKLE_SIZE = 64 * 2**20  # bytes
MAX_LISTED = 20
ZIP = b"PK\x03\x04"
PICKLE = b"\x80"


def describe(path: Path) -> dict[str, Any]:
    """Return what a file or folder holds, as plain values.

    Raises:
        UserError: there is no such file, or it is none that zoo reads.
    """
    if not path.exists():
        raise UserError(f"no file {path}")
    if path.is_dir():
        return describe_folder(path)
    if not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder")
    with path.open("rb") as file:
        start = file.read(4)
    if path.suffix == ".safetensors":
        return describe_safetensors(path)
    if path.suffix in (".yaml", ".yml"):
        return {"kind": "config", **describe_config(read_yaml(path), path)}
    if path.suffix == ".json":
        return describe_json(path)
    if start == ZIP or start[:1] == PICKLE:
        return describe_torch(path)
    raise UserError(f"{path} is no checkpoint, weights, tokenizer, config or run that zoo reads")


# Checkpoints and weights ----------------------------------------------------------------------------------------------


def describe_torch(path: Path) -> dict[str, Any]:
    """Describe a file of ``torch.save``; one that holds more than plain values by the names that it would call."""
    from zoo.checkpoints.checkpoint import read_tensors

    found = {"kind": "file of torch.save", "bytes": path.stat().st_size, "whole": wholeness(path)}
    try:
        content = read_tensors(path, "meta")
    except UserError as error:
        return {**found, "refused": str(error), "names_in_pickle": names_in_pickle(path)}
    if not isinstance(content, Mapping):
        return {**found, "holds": type(content).__name__}
    return {**found, **describe_content(content, path)}


def describe_content(content: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """Describe the content of a checkpoint, or of weights alone."""
    import torch

    from zoo.checkpoints.renames import FORMAT_KEY

    state = content.get("state_dict", content)
    tensors = {}
    if isinstance(state, Mapping):
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[key] = (str(value.dtype).removeprefix("torch."), list(value.shape))
    if "state_dict" not in content:
        return {"kind": "weights", **summary(tensors), "keys": listed(content)}
    found: dict[str, Any] = {"kind": "checkpoint", "format": content.get(FORMAT_KEY, 1)}
    found["lightning"] = content.get("pytorch-lightning_version")
    found["epoch"] = content.get("epoch")
    found["steps"] = content.get("global_step")
    found |= summary(tensors)
    found["ema_weights"] = bool(content.get("ema_params"))
    refused = []
    for key, section in (("hyper_parameters", "model"), ("datamodule_hyper_parameters", "data")):
        arguments = content.get(key)
        if not isinstance(arguments, Mapping):
            continue
        found[section] = arguments.get("_class_path", "not named")
        values = {name: value for name, value in arguments.items() if not str(name).startswith("_")}
        found[f"{section}_arguments"] = {str(name): plain(value) for name, value in values.items()}
    refused += refused_classes(content)
    problem = refused_as_a_whole(content, path)
    if problem is not None:
        refused.append(problem)
    found["class_paths"] = sorted(set(class_paths_in(content)))
    found["refused"] = list(dict.fromkeys(refused)) or "nothing"
    found["keys"] = listed(content)
    return found


def describe_safetensors(path: Path) -> dict[str, Any]:
    """Describe a ``.safetensors`` file by its header."""
    metadata, tensors = read_safetensors_header(path)
    found = {"kind": "weights (safetensors)", "bytes": path.stat().st_size, "whole": wholeness(path)}
    found |= summary(tensors)
    for name, text in metadata.items():
        if name != "zoo":
            found[f"metadata_{name}"] = plain(text)
            continue
        header = parse_json_object(text, path)
        found["arguments"] = {str(key): plain(value) for key, value in as_mapping(header.get("arguments")).items()}
        found["class_paths"] = sorted(set(class_paths_in(header)))
    return found


def summary(tensors: Mapping[str, tuple[str, list[int]]]) -> dict[str, Any]:
    """Return numbers of tensors and parameters, and parameters by dtype."""
    sizes: Counter[str] = Counter()
    for dtype, shape in tensors.values():
        sizes[dtype] += prod(shape)
    return {"tensors": len(tensors), "numbers": sum(sizes.values()), "dtypes": dict(sizes)}


def wholeness(path: Path) -> str:
    """Return whether the digest or the checksums of a file fit its content."""
    from zoo.checkpoints.integrity import verify

    try:
        verify(path)
    except UserError as error:
        return f"no: {error}"
    return "yes"


def names_in_pickle(path: Path) -> list[str]:
    """Return the functions and classes that unpickling a file would call, without unpickling it."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                with archive.open(name) as file:
                    content = file.read(MAX_PICKLE_SIZE)
        else:
            with path.open("rb") as file:
                content = file.read(MAX_PICKLE_SIZE)
        return sorted(set(globals_in(content)))
    except Exception as error:  # zipfile and pickletools raise whatever a damaged file brings them to
        return [f"not readable: {type(error).__name__}"]


def globals_in(content: bytes) -> Iterable[str]:
    """Yield the names that the instructions of a pickle look up."""
    texts: list[str] = []
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif operation.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif isinstance(argument, str):
            texts.append(argument)


# Folders and text -----------------------------------------------------------------------------------------------------


def describe_folder(folder: Path) -> dict[str, Any]:
    """Describe a run, a sharded checkpoint, or a folder of published weights."""
    from zoo.checkpoints.sharded import INDEX, check_sharded

    if (folder / "config.yaml").is_file():
        return describe_run(folder)
    if (folder / INDEX).is_file():
        try:
            check_sharded(folder)
        except UserError as error:
            return {"kind": "sharded checkpoint", "refused": str(error)}
        return {"kind": "sharded checkpoint", "files": files_in(folder), "refused": "nothing"}
    if (folder / "config.json").is_file():
        config = {str(name): plain(value) for name, value in read_json(folder / "config.json").items()}
        return {"kind": "folder of weights", "files": files_in(folder), "config": config}
    raise UserError(f"{folder} holds no config.yaml of a run, no {INDEX} of a checkpoint and no config.json")


def describe_run(folder: Path) -> dict[str, Any]:
    """Describe the folder of a run by its config, its record and its checkpoints."""
    found: dict[str, Any] = {"kind": "run", **describe_config(read_yaml(folder / "config.yaml"), folder)}
    if (folder / "environment.json").is_file():
        record = read_json(folder / "environment.json")
        found["record"] = {name: plain(value) for name, value in record.items() if name != "resumed"}
        resumed = record.get("resumed")
        found["resumed"] = len(resumed) if isinstance(resumed, list) else 0
    if (folder / "checkpoints").is_dir():
        found["checkpoints"] = files_in(folder / "checkpoints")
    return found


def describe_config(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Describe a config by its sections and the classes that it names."""
    found: dict[str, Any] = {}
    for section in ("model", "data"):
        value = config.get(section)
        found[section] = as_mapping(value).get("class_path", value if isinstance(value, str) else "not named")
    found["class_paths"] = sorted(set(class_paths_in(config)))
    found["refused"] = refused_classes(config, "config") or "nothing"
    return found


def describe_json(path: Path) -> dict[str, Any]:
    """Describe a tokenizer of the tokenizers library, or another JSON file by its keys."""
    content = read_json(path)
    model = content.get("model")
    if not isinstance(model, dict):
        return {"kind": "JSON", "bytes": path.stat().st_size, "keys": listed(content)}
    vocabulary = model.get("vocab")
    added = content.get("added_tokens")
    return {
        "kind": "tokenizer",
        "bytes": path.stat().st_size,
        "model": plain(model.get("type")),
        "tokens": len(vocabulary) if isinstance(vocabulary, (dict, list)) else 0,
        "added_tokens": len(added) if isinstance(added, list) else 0,
        "version": plain(content.get("version")),
    }


# Values ---------------------------------------------------------------------------------------------------------------


def class_paths_in(value: Any) -> Iterable[str]:
    """Yield the class paths of the hyperparameters of a checkpoint, or of a config."""
    from zoo.checkpoints.hyperparameters import named_classes

    for key in ("hyper_parameters", "datamodule_hyper_parameters"):
        path = as_mapping(as_mapping(value).get(key)).get("_class_path")
        if path is not None:
            yield str(path)
    for _, path in named_classes(value):
        yield str(path)


def refused_classes(value: Any, origin: class_paths.Origin = "checkpoint") -> list[str]:
    """Return a sentence for each class path that may not be named."""
    found = []
    for path in sorted(set(class_paths_in(value))):
        # A short name is looked up among the classes that the argument takes.
        reason = None if path.isidentifier() and origin == "config" else class_paths.refusal(path, origin)
        if reason is not None:
            found.append(f"{printable(path)} {reason}")
    return found


def refused_as_a_whole(content: Mapping[Any, Any], path: Path) -> str | None:
    """Return why the hyperparameters are refused for another reason than a class path."""
    from zoo.checkpoints.hyperparameters import check_values

    try:
        check_values(content, path)
    except UserError as error:
        return str(error)
    return None


def files_in(folder: Path) -> dict[str, str]:
    """Return the sizes of the files in a folder."""
    found = {}
    for path in sorted(folder.iterdir())[:MAX_LISTED]:
        found[path.name] = "folder" if path.is_dir() else f"{path.lstat().st_size:,} bytes"
    return found


def listed(content: Mapping[Any, Any]) -> str:
    """Return the first keys, separated by commas."""
    names = [printable(key) for key in content]
    more = ", ..." if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def as_mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def plain(value: Any) -> Any:
    """Return a value as JSON takes it; what is large or nested as the beginning of its text."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return printable(value)
