"""Files that are built to run code, to take all memory, to leave their folder, or to be odd inside."""

import base64
import contextlib
import copy
import importlib
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from zoo.checkpoints import Checkpoint, read_tensors
from zoo.cli.file_report import describe
from zoo.data import disk_cache
from zoo.data.images.cifar import read_pickle
from zoo.errors import UserError
from zoo.models import BERT, MLPClassifier
from zoo.models.frozen import open_autoencoder, open_text_encoder
from zoo.tasks.distillation import load_teacher
from zoo.text.tokenizer import Tokenizer
from zoo.trust.reading import check_yaml, read_json, read_safetensors_header, read_yaml
from zoo.weights.files import read

MB = 2**20

# Pickles, wherever a file is read -------------------------------------------------------------------------------------

READERS = {
    "a checkpoint": ("a.ckpt", Checkpoint),
    "a checkpoint, in Python": ("a.ckpt", MLPClassifier.load_from_checkpoint),
    "weights": ("a.pt", read),
    "weights of PyTorch": ("a.pth", read),
    "weights of transformers": ("folder/pytorch_model.bin", lambda path: read(path.parent)),
    "a teacher": ("a.ckpt", lambda path: load_teacher(str(path))),
    "an autoencoder": ("a.ckpt", lambda path: open_autoencoder(str(path))),
    "a text encoder": ("folder/model.bin", lambda path: open_text_encoder(str(path.parent))),
    "the values of a sharded checkpoint": ("folder/meta.pt", lambda path: Checkpoint(path.parent)),
    "a batch of CIFAR": ("data_batch_1", read_pickle),
}  # fmt: skip


@pytest.mark.parametrize("form", ["archive", "stream"])
@pytest.mark.parametrize("case", READERS)
def test_pickle_is_not_run(case, form, runs, tmp_path):
    name, read_it = READERS[case]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if form == "archive":
        torch.save({"state_dict": {"w": torch.zeros(1)}, "evil": runs}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": {}, "evil": runs}))
    if path.name == "pytorch_model.bin":
        (path.parent / "config.json").write_text("{}")
    with pytest.raises(ValueError):
        read_it(path)


def test_index_of_a_sharded_checkpoint_is_not_run(runs, tmp_path):
    dcp.save({"w": torch.zeros(2), "lr": 0.1}, checkpoint_id=tmp_path / "sharded")
    Checkpoint(tmp_path / "sharded")
    index = tmp_path / "sharded" / ".metadata"
    whole = index.read_bytes()
    index.write_bytes(pickle.dumps(runs))
    with pytest.raises(UserError, match="Python objects, which could run code"):
        Checkpoint(tmp_path / "sharded")
    metadata = pickle.loads(whole)
    for place in metadata.storage_data.values():
        place.relative_path = "../outside"
    index.write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match="names a file outside of its folder"):
        Checkpoint(tmp_path / "sharded")


def test_values_of_a_sharded_checkpoint_are_not_run(runs, tmp_path):
    """torch.distributed.checkpoint unpickles whatever is not a tensor."""
    with torch.serialization.safe_globals([]):
        dcp.save({"w": torch.zeros(2), "lr": runs}, checkpoint_id=tmp_path / "sharded")
    with pytest.raises(UserError, match="Python objects, which could run code"):
        Checkpoint(tmp_path / "sharded")
    assert "could run code" in describe(tmp_path / "sharded")["refused"]


def test_arrays_of_objects_are_not_read(runs, tmp_path, refused):
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train" / "a.npy", np.array([runs], dtype=object), allow_pickle=True)
    refused("fit", "--model", "SmallCNNClassifier", "--data", "ImageFolder", "--data.train", "train")


# Checkpoints that are odd inside --------------------------------------------------------------------------------------

ODD = {
    "format": ("zoo_format", ["text", -1.5, [2], None, 10**30]),
    "weights": ("state_dict", [[1], "text", {1: torch.zeros(1)}, {"net.1.weight": "text"}]),
    "EMA weights": ("ema_params", [[1], {"net.1.weight": 3}, {2: torch.zeros(1)}]),
    "callbacks": ("callbacks", [[1], "text", 3]),
    "loops": ("loops", ["text", [1]]),
    "step": ("global_step", ["text", [1], {}]),
    "epoch": ("epoch", ["text", {}]),
    "arguments": ("hyper_parameters", [[1], "text", {"hidden": "text", "_class_path": "zoo.models.MLPClassifier"}]),
    "arguments of the data": ("datamodule_hyper_parameters", [[1], 3, {"_class_path": 5}, {3: 4}]),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_checkpoint_is_one_line(case, good, refused):
    key, values = ODD[case]
    for value in values:
        content = {**good, key: value}
        if value is None:
            continue
        torch.save(content, "a.ckpt")
        refused("test", "--ckpt_path", "a.ckpt", "--trainer.enable_progress_bar", "false")


def test_nested_values_are_one_line(good, refused):
    nested: list = []
    for _ in range(300):
        nested = [nested]
    torch.save({**good, "hyper_parameters": {**good["hyper_parameters"], "hidden": nested}}, "a.ckpt")
    assert "nested more than" in refused("test", "--ckpt_path", "a.ckpt")


@pytest.mark.parametrize("size", [10**9, 10**15, 10**30])
def test_size_that_cannot_be_meant_is_refused_before_it_is_allocated(size, good, refused):
    content = {**good, "hyper_parameters": {**good["hyper_parameters"], "hidden": [size]}}
    torch.save(content, "a.ckpt")
    refused("test", "--ckpt_path", "a.ckpt")
    with pytest.raises(ValueError):
        Checkpoint("a.ckpt").build()
    refused("fit", "--model", "GPTLanguageModel", "--data", "PythonDocs", "--model.vocab_size", 10**12)


# Archives, links and folders ------------------------------------------------------------------------------------------


def test_names_in_an_archive_lead_nowhere(good, tmp_path, nothing_happens):
    torch.save(good, "good.ckpt")
    with zipfile.ZipFile("good.ckpt") as old, zipfile.ZipFile("a.ckpt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr(f"../{nothing_happens.name}/slipped", "x")
        new.writestr(str(nothing_happens / "slipped"), "x")
    with contextlib.suppress(UserError):
        read_tensors(Path("a.ckpt"), "cpu")


def test_archive_that_unpacks_to_more_than_it_has(tmp_path):
    with zipfile.ZipFile("a.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/version", "3")
        with archive.open("a/data.pkl", "w", force_zip64=True) as file:
            for _ in range(64):
                file.write(b"\0" * MB)
    with pytest.raises(UserError):
        Checkpoint("a.ckpt")
    assert describe(Path("a.ckpt"))["refused"]


def test_index_of_weights_names_files_of_its_folder_only(tmp_path, nothing_happens):
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({"w": torch.zeros(1)}, nothing_happens / "precious.safetensors")
    index = {"weight_map": {"w": f"../../{nothing_happens.name}/precious.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError):
        read(folder)
    (nothing_happens / "precious.safetensors").unlink()


def test_links_in_a_run_are_not_written_through(zoo, tmp_path, nothing_happens):
    run = tmp_path / "run"
    argv = ("fit", "--model", "MLPClassifier", "--data", "Digits", "--trainer.max_steps", 1,
            "--trainer.limit_val_batches", 1, "--trainer.enable_progress_bar", "false")  # fmt: skip
    assert zoo(*argv, "--run_dir", run)[0] == 0
    for name in ("metrics.csv", "config.yaml", "environment.json"):
        (run / f"{name}.new").symlink_to(nothing_happens / "precious")
        (run / f".{name}.new-{os.getpid()}").symlink_to(nothing_happens / "precious")
    assert zoo("fit", "--resume", run, "--trainer.max_steps", 2, "--trainer.enable_progress_bar", "false")[0] == 0


# YAML -----------------------------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
YAML = {
    "aliases that multiply": LAUGHS,
    "an alias within itself": "a: &a [*a]\n",
    "merged aliases that multiply": "a: &a {x: 1}\n" + "b: &b {<<: [*a, *a], y: *a}\n" + LAUGHS,
    "lists in lists": "a: " + "[" * 100_000,
    "maps in maps": "a: " + "{a: " * 50_000,
    "blocks in blocks": "".join(f"{' ' * i}a:\n" for i in range(2_000)),
    "too large": "a: " + "x" * (5 * MB),
    "too many values": "a: [" + "1," * 500_000 + "]",
    "a long number": "a: " + "1" * 100_000,
    "month 13": "a: 2026-13-45\n",
    "an object of Python": "a: !!python/object/apply:os.system [touch ran]\n",
    "a name of Python": "a: !!python/name:os.system\n",
    "a list as key": "? [1, 2]\n: 3\n",
    "numbers as keys": "1: 2\n",
    "no keys": "- 1\n- 2\n",
    "null bytes": "a: \0\n",
    "an escape sequence": "a: \x1b[2J\n",
    "nothing": "",
    "several documents": "a: 1\n---\nb: 2\n",
}  # fmt: skip


@pytest.mark.parametrize("case", YAML)
def test_config_is_refused_in_one_line(case, tmp_path, refused):
    (tmp_path / "c.yaml").write_text(YAML[case])
    assert "c.yaml" in refused("fit", "-c", "c.yaml")
    with pytest.raises(UserError):
        read_yaml("c.yaml")


def test_config_that_is_no_text(tmp_path, refused):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\0a")
    refused("fit", "-c", "c.yaml")


def test_bomb_within_a_value_or_a_config_named_by_another(tmp_path, refused):
    argv = ("fit", "--model", "MLPClassifier", "--data", "Digits")
    refused(*argv, "--model.hidden", LAUGHS)
    (tmp_path / "bomb.yaml").write_text(LAUGHS)
    refused(*argv, "--model.optimizer", "bomb.yaml")
    (tmp_path / "c.yaml").write_text(json.dumps({"model": "bomb.yaml", "data": "Digits"}))
    refused("fit", "-c", "c.yaml")


def test_bounds_can_be_raised(monkeypatch):
    text = "[" + "1," * 500_000 + "]"
    with pytest.raises(ValueError, match="ZOO_READ_LIMIT raises"):
        check_yaml(text)
    monkeypatch.setenv("ZOO_READ_LIMIT", "10")
    check_yaml(text)
    monkeypatch.setenv("ZOO_READ_LIMIT", "many")
    with pytest.raises(UserError, match="a number that multiplies"):
        check_yaml(text)


# Tokenizers and JSON --------------------------------------------------------------------------------------------------


def packed(content: bytes) -> dict[str, str]:
    return {"packed": base64.b64encode(zlib.compress(content, 9)).decode()}


TOKENIZERS = {
    "unpacks to 200 MB": lambda: {"packed": base64.b64encode(bomb(200)).decode()},
    "is no text": lambda: {"packed": 5},
    "is damaged": lambda: {"packed": packed(b"[]")["packed"][:-8]},
    "is nested": lambda: packed(b"[" * 10**6),
    "is a number": lambda: packed(b"5"),
    "has no such level": lambda: packed(b'["evil", [], {}]'),
    "has tokens that are no text": lambda: packed(b'["characters", [1, 2], {}]'),
    "has lists as tokens": lambda: packed(b'["words", [[1], {}], {}]'),
    "has specials that are a list": lambda: packed(b'["words", [], [1]]'),
    "is another file's": lambda: packed(b'["huggingface", "{}", {}]'),
    "has numbers beyond bounds": lambda: packed(json.dumps(["huggingface", huge_numbers(), {}]).encode()),
    "is a list": lambda: [1],
}


def bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    parts = [packer.compress(b" " * MB) for _ in range(megabytes)]
    return b"".join([*parts, packer.flush()])


def huge_numbers() -> str:
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 4_000_000_000}, "unk_token": "a"}
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model})


@pytest.mark.parametrize("case", TOKENIZERS)
def test_tokenizer_in_a_checkpoint_is_refused(case):
    with pytest.raises(ValueError) as error:
        Tokenizer.from_plain(TOKENIZERS[case]())
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**6,
        "5",
        '{"model": 5}',
        '{"model": {}, "added_tokens": [1]}',
        '{"a": ' + "9" * 5000 + "}",
        huge_numbers(),
    ],
)
def test_tokenizer_file_is_refused(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_json_has_a_bound(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text('{"a": 1}' + " " * MB)
    monkeypatch.setenv("ZOO_READ_LIMIT", "0.001")
    with pytest.raises(UserError, match="has more than"):
        read_json("a.json")


# Headers --------------------------------------------------------------------------------------------------------------


def header(content: object, length: int | None = None) -> bytes:
    text = json.dumps(content).encode() if not isinstance(content, bytes) else content
    return (len(text) if length is None else length).to_bytes(8, "little") + text + b"\0" * 16


def tensor(**changes: object) -> dict:
    return {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}


HEADERS = {
    "longer than the file": header({}, 10**9),
    "of 2^63 bytes": header({}, 2**63),
    "no JSON": header(b"{"),
    "nested": header(b"[" * 10**6),
    "a list": header([1]),
    "a shape that is text": header(tensor(shape="text")),
    "a negative shape": header(tensor(shape=[-1])),
    "a place beyond the file": header(tensor(data_offsets=[0, 10**12])),
    "a place that ends before it begins": header(tensor(data_offsets=[8, 4])),
    "a tensor that is a number": header({"w": 1}),
    "metadata that is a list": header({"__metadata__": [1], **tensor()}),
    "no content": b"",
}


@pytest.mark.parametrize("case", HEADERS)
def test_header_is_refused(case, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(HEADERS[case])
    with pytest.raises(UserError):
        read_safetensors_header(path)
    with pytest.raises(ValueError):
        read(path)


@pytest.mark.parametrize("text", ["[1]", "5", "{", '{"arguments": 5}', '{"arguments": [1]}', '{"preprocessing": 5}'])
def test_metadata_of_weights_is_one_line(text, tmp_path):
    net = MLPClassifier(hidden=[4], input_dim=4, num_classes=2).net
    save_file({k: v for k, v in net.state_dict().items()}, tmp_path / "a.safetensors", {"zoo": text})
    with contextlib.suppress(ValueError):
        read(tmp_path / "a.safetensors")


# Text of others -------------------------------------------------------------------------------------------------------


def test_control_characters_are_not_printed(good, zoo, refused, tmp_path, capfd):
    escape = "\x1b[2J\x1b]0;title\x07\r\b"
    hyper = {**good["hyper_parameters"], "class_names": [f"{i}{escape}" for i in range(10)]}
    torch.save({**good, "hyper_parameters": hyper}, "a.ckpt")
    code, out, err = zoo("test", "--ckpt_path", "a.ckpt", "--trainer.enable_progress_bar", "false")
    assert code in (0, 2)
    assert not {"\x1b", "\x07", "\r", "\b"} & set(out + err)
    code, out, err = zoo("inspect", "a.ckpt")
    assert code == 0
    assert not {"\x1b", "\x07", "\r", "\b"} & set(out + err)
    torch.save({**good, "hyper_parameters": {**hyper, "_class_path": f"zoo.models.{escape}"}}, "a.ckpt")
    refused("test", "--ckpt_path", "a.ckpt")
    name = f"a{escape.replace('/', '')}.ckpt"
    (tmp_path / name).write_bytes(b"x")
    refused("test", "--ckpt_path", name)


# Memory ---------------------------------------------------------------------------------------------------------------

COMMANDS = """
import re
from zoo.cli import main
codes = [main(["test", "--ckpt_path", "a.ckpt"]), main(["fit", "-c", "c.yaml"])]
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())  # of this process, not of its parent
print(*codes, int(peak[1]) // 1024)
"""


@pytest.mark.slow
def test_bombs_stay_below_1_5_gb(good, tmp_path):
    """A tokenizer, sizes and a config, of which each alone once took all memory."""
    (tmp_path / "c.yaml").write_text(LAUGHS)
    tokenizer = {"packed": base64.b64encode(bomb(200)).decode()}
    content = copy.deepcopy(good)
    content["hyper_parameters"] = {"_class_path": "zoo.models.GPTLanguageModel", "vocab_size": 10**9, "dim": 8}
    content["datamodule_hyper_parameters"] = {"_class_path": "zoo.data.PythonDocs", "tokenizer": tokenizer}
    torch.save(content, "a.ckpt")
    done = subprocess.run([sys.executable, "-c", COMMANDS], capture_output=True, text=True, timeout=240)
    *codes, peak = map(int, done.stdout.split())
    assert codes == [2, 2]
    assert len(done.stderr.strip().splitlines()) == 2, done.stderr
    assert peak < 1500


# Depth and folders of weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [10**6, 10**12])
def test_depth_that_cannot_be_meant_is_refused_while_the_model_is_built(depth, good, refused):
    assert "a depth of it" in refused("fit", "--model", "MLPClassifier", "--data", "Digits", "--model.hidden",
                                      json.dumps([2] * 30_000))  # fmt: skip
    refused("fit", "--model", "GPTLanguageModel", "--data", "PythonDocs", "--model.depth", depth, "--model.dim", 8,
            "--model.heads", 1)  # fmt: skip


@pytest.mark.parametrize("change", [{"num_hidden_layers": 10**12}, {"hidden_size": [16]}, {"vocab_size": 10**12}])
def test_config_of_weights_that_is_odd_is_one_line(change, tmp_path):
    BERT(vocab_size=7, dim=8, depth=1, heads=2).save_pretrained(tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match="bert"):
        BERT.from_pretrained(tmp_path / "bert")


# Temporary names ------------------------------------------------------------------------------------------------------


def test_planted_links_of_caches_and_downloads_are_not_written_through(tmp_path, nothing_happens, monkeypatch):
    fetch = importlib.import_module("zoo.weights.fetch")  # the package has a function of this name
    outside = nothing_happens / "precious"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "key.lock").symlink_to(outside)
    with pytest.raises(OSError, match="symbolic link"):
        disk_cache.ensure(tmp_path / "cache" / "key", lambda new: (new / "index.json").write_text("{}"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "net-01234567.pth.partial").symlink_to(outside)
    with pytest.raises(UserError, match="symbolic link"):
        fetch.fetch("https://example.org/net-01234567.pth")


def test_folder_of_a_cache_has_a_name_that_cannot_be_guessed(tmp_path):
    names = []
    for key in ("a", "b"):
        disk_cache.ensure(tmp_path / key, lambda new: (names.append(new.name), (new / "index.json").write_text("{}")))
    assert all(re.fullmatch(r"\.[ab]\.new-\w+-\d+-[0-9a-f]{16}", name) for name in names)
    assert names[0][-16:] != names[1][-16:]
