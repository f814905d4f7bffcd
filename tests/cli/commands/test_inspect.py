"""``zoo inspect``: what files hold, without building or importing any of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from zoo.cli.file_report import describe
from zoo.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[2] / "golden"


def test_checkpoint(zoo, here):
    shutil.copy(GOLDEN / "distiller.ckpt", here / "a.ckpt")
    code, out, err = zoo("inspect", "a.ckpt", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    content = torch.load(here / "a.ckpt", weights_only=True)
    assert found["kind"] == "checkpoint"
    assert found["model"] == "zoo.tasks.Distiller"
    assert found["data"] == "zoo.data.Digits"
    assert found["steps"] == content["global_step"]
    assert found["numbers"] == sum(tensor.numel() for tensor in content["state_dict"].values())
    assert found["dtypes"].keys() == {"float32"}
    assert "zoo.models.MLP" in found["class_paths"]
    assert found["refused"] == "nothing"
    code, out, _ = zoo("inspect", "a.ckpt")
    assert code == 0
    assert "zoo.tasks.Distiller" in out


def test_what_would_be_refused_is_named_and_nothing_is_imported(here):
    (here / "own_module.py").write_text("open('ran', 'w').close()\nclass Net: pass\n")
    content = torch.load(GOLDEN / "mlp.ckpt", weights_only=True)
    for path in ("torch.hub.load", "own_module.Net", "antigravity.Net"):
        content["hyper_parameters"]["loss"] = {"class_path": path}
        torch.save(content, "a.ckpt")
        assert any(path in line for line in describe(Path("a.ckpt"))["refused"])
    content["hyper_parameters"]["loss"] = None
    content["hyper_parameters"]["optimizer"] = "SGD"
    torch.save(content, "a.ckpt")
    assert "optimizer" in str(describe(Path("a.ckpt"))["refused"])
    assert not (here / "ran").exists()


class Evil:
    def __reduce__(self):
        return open, ("ran", "w")


def test_names_in_a_pickle_are_listed_and_not_called(here):
    torch.save({"state_dict": {}, "x": Evil()}, "a.ckpt")
    found = describe(Path("a.ckpt"))
    assert "Python objects" in found["refused"]
    assert any(name.endswith("io.open") or name.endswith(".open") for name in found["names_in_pickle"])
    assert not (here / "ran").exists()


def test_weights_tokenizer_config_and_run(zoo, here):
    save_file({"w": torch.zeros(2, 3), "b": torch.zeros(3, dtype=torch.bfloat16)}, "a.safetensors", {"zoo": "{}"})
    found = describe(Path("a.safetensors"))
    assert (found["tensors"], found["numbers"], found["dtypes"]) == (2, 9, {"F32": 6, "BF16": 3})
    torch.save({"w": torch.zeros(2, 3)}, "a.pt")
    assert describe(Path("a.pt"))["kind"] == "weights"
    tokenizer = Tokenizer.train("bpe", ["a b a b ab ab"], 260)
    (here / "tokenizer.json").write_text(tokenizer.source)
    found = describe(Path("tokenizer.json"))
    assert (found["kind"], found["model"]) == ("tokenizer", "BPE")
    (here / "c.yaml").write_text("model: MLPClassifier\ndata: {class_path: torch.load}\n")
    found = describe(Path("c.yaml"))
    assert found["model"] == "MLPClassifier"
    assert "torch.load" in found["refused"][0]
    shutil.copytree(GOLDEN / "run", here / "run")
    code, out, err = zoo("inspect", "run")
    assert (code, err) == (0, "")
    assert "last.ckpt" in out


@pytest.mark.parametrize("name", ["absent", "text.bin", "empty"])
def test_mistakes_are_one_line(name, zoo, here):
    (here / "text.bin").write_bytes(b"hello")
    (here / "empty").mkdir()
    code, _, err = zoo("inspect", name)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
