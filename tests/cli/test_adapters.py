"""Adapters on the command line: from a fit to every command that takes one, and the mistakes with them."""

import json

import pytest
import torch

GPT = ("--model", "GPTLanguageModel", "--model.dim", 16, "--model.depth", 1, "--model.heads", 2)
DATA = ("--data", "TextCorpus", "--data.path", "text.txt", "--data.block_size", 8)
QUIET = ("--trainer.enable_progress_bar", "false")
OPTIONS = (*GPT, *DATA, *QUIET, "--trainer.max_steps", 4)
FIT = ("fit", *OPTIONS)
BASE = "base/checkpoints/last.ckpt"
ADAPTER = "lora/checkpoints/last.ckpt"
LORA = ("--lora.target", "q|v", "--lora.rank", 2)


@pytest.fixture
def text(here):
    (here / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)


@pytest.fixture
def runs(zoo, text):
    """Train a base and an adapter of it; return what the second one printed."""
    code, _, error = zoo(*FIT, "--run_dir", "base")
    assert code == 0, error
    code, printed, error = zoo(*FIT, "--run_dir", "lora", *LORA, "--lora.base", BASE, "--model.lr", 0.1)
    assert code == 0, error
    return printed


def test_from_a_fit_to_every_command(zoo, runs, here):
    assert ", 128 of them trained, run lora" in runs
    assert "zoo test -c lora/config.yaml --ckpt_path lora/checkpoints/best.ckpt" in runs
    state = torch.load(ADAPTER, weights_only=True)["state_dict"]
    assert sorted(state) == ["net.blocks.0.attn.qkv.lora_A", "net.blocks.0.attn.qkv.lora_B"]

    losses = []
    for options in (
        ("--ckpt_path", BASE),
        ("--ckpt_path", BASE, "--adapter", ADAPTER),
        ("-c", "lora/config.yaml", "--ckpt_path", ADAPTER),
    ):
        code, printed, error = zoo("test", *options, *QUIET)
        assert code == 0, error
        losses.append(next(line.split()[-1] for line in printed.splitlines() if "test/loss" in line))
    assert losses[0] != losses[1]
    assert losses[1] == losses[2]

    assert zoo("export", "--ckpt_path", BASE, "--adapter", ADAPTER, "--out", "merged.safetensors")[0] == 0
    assert zoo("export", "--ckpt_path", BASE, "--adapter", ADAPTER, "--peft", "--out", "peft")[0] == 0
    assert json.loads((here / "peft" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    texts = []
    for used in ((), ("--adapter", ADAPTER), ("--adapter", "peft")):
        code, printed, _ = zoo("generate", "--ckpt_path", BASE, *used, "--prompt", "the ", "--max_new_tokens", 40)
        assert code == 0
        texts.append(printed)
    assert texts[0] != texts[1]
    assert texts[1] == texts[2]


def test_plan_shows_the_adapter(zoo, text):
    code, printed, _ = zoo("plan", *OPTIONS, *LORA)
    assert code == 0
    assert "blocks.*.attn.qkv" in printed
    assert "q+v" in printed
    assert "LoRA: rank 2, scale 16, 128 of" in printed


def test_mistakes(zoo, runs, here):
    assert zoo(*FIT, "--run_dir", "other", "--seed_everything", 5)[0] == 0
    other = "other/checkpoints/last.ckpt"
    alone = f"holds a LoRA adapter alone: give the model that it was trained on ({BASE})"
    prompt = ("--prompt", "the ")
    mistakes = [
        (("generate", "--ckpt_path", ADAPTER, *prompt), alone),
        (("test", "--ckpt_path", ADAPTER), alone),
        (("export", "--ckpt_path", ADAPTER, "--out", "x.safetensors"), alone),
        (("generate", "--ckpt_path", other, "--adapter", ADAPTER, *prompt), "adapter of other base weights"),
        (("test", "--ckpt_path", other, "--adapter", ADAPTER), "adapter of other base weights"),
        (("test", "--ckpt_path", BASE, "--adapter", other), "holds no adapter"),
        (("test", "--ckpt_path", BASE, "--adapter", "absent"), "no checkpoint absent"),
        (("export", "--ckpt_path", BASE, "--peft", "--out", "x"), "name it with --adapter"),
        ((*FIT, "--run_dir", "y", "--lora.target", "x|y"), "matches no layer of GPT"),
        ((*FIT, "--run_dir", "y", "--lora.base", ADAPTER), "holds an adapter alone"),
        ((*FIT, "--run_dir", "y", "--lora.target", "q", "--ckpt_path", BASE), "give it as --lora.base"),
        ((*FIT, "--run_dir", "y", "--model.weights", ADAPTER), "holds a LoRA adapter alone"),
    ]
    for command, message in mistakes:
        code, _, error = zoo(*command)
        assert code == 2, command
        assert message in error, command
        assert error.splitlines()[-1].startswith("zoo: error: "), command
    assert not (here / "y").exists()
    assert not (here / "x").exists()
