"""``zoo generate`` through the command line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zoo.cli import main, text_generation
from zoo.cli.commands import generate
from zoo.cli.option_parser import OptionParser
from zoo.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[3]
SMALL = "--model.dim 32 --model.depth 2 --model.heads 2 --data PythonDocs --data.block_size 32"
TRAINED = f"fit --model GPTLanguageModel {SMALL} --model.lr 0.01 --trainer.max_steps 30 --trainer.limit_val_batches 1"
PROMPT = "The statement"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The checkpoint of a GPT that has seen a little text, with averages far behind its weights."""
    folder = tmp_path_factory.mktemp("gpt") / "run"
    assert main([*TRAINED.split(), "--ema.decay", "0.95", "--ema.warmup", "false", "--run_dir", str(folder)]) == 0
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """The checkpoint of another kind of model."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    fit = ["fit", "--model", "MLPClassifier", "--data", "Digits", "--trainer.max_steps", "1"]
    assert main([*fit, "--run_dir", str(folder)]) == 0
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder as Hugging Face has them, with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer = Tokenizer.train("bpe", ["the statement is a statement"] * 3, vocab_size=270)
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**size)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.source)
    return folder


# What it writes -------------------------------------------------------------------------------------------------------


def test_a_text_goes_to_the_terminal(zoo, trained):
    options = ["--max_new_tokens", 60, "--temperature", 0.8, "--top_k", 20, "--seed", 3]
    code, out, err = zoo("generate", "--ckpt_path", trained, "--prompt", PROMPT, *options)
    assert code == 0
    model = text_generation.load_language_model(trained)
    (text,) = model.complete([PROMPT], max_new_tokens=60, temperature=0.8, top_k=20, seed=3)
    assert out == f"{PROMPT}{text}\n"
    assert len(text) == 60
    assert err == "zoo: beyond the context of 32 tokens, generation continues from the last half of the context\n"
    other = zoo("generate", "--ckpt_path", trained, "--prompt", PROMPT, *options[:-1], 4)[1]
    assert out != other


def test_the_text_comes_as_it_is_drawn(trained, here, monkeypatch):
    """Each token is flushed by itself."""
    pieces = []
    monkeypatch.setattr("builtins.print", lambda *parts, **options: pieces.append((parts, options)))
    given = ["--ckpt_path", str(trained), "--prompt", PROMPT, "--max_new_tokens", "10"]
    assert main(["generate", *given]) == 0
    told = [parts[0] for parts, options in pieces if parts and options.get("flush")]
    assert told[0] == PROMPT
    assert len(told) == 11


def test_averages_or_raw_weights(zoo, trained):
    texts = {}
    for weights in ("raw", "ema", "auto"):
        options = ["--weights", weights, "--max_new_tokens", 15, "--temperature", 0.5]
        code, texts[weights], _ = zoo("generate", "--ckpt_path", trained, "--prompt", PROMPT, *options)
        assert code == 0
    assert texts["ema"] == texts["auto"] != texts["raw"]
    saved = torch.load(trained, weights_only=True)
    raw = text_generation.load_language_model(trained, "raw").state_dict()
    trained_weights = saved["state_dict"] | saved["raw_params"]
    assert all(torch.equal(raw[name], trained_weights[name]) for name in raw)
    averaged = text_generation.load_language_model(trained, "ema").state_dict()
    assert all(torch.equal(averaged[name], mean) for name, mean in saved["ema_params"].items())


def test_half_precision_writes_nearly_the_same(zoo, trained):
    base = ["generate", "--ckpt_path", trained, "--prompt", PROMPT, "--max_new_tokens", 15, "--temperature", 0]
    texts = [zoo(*base, "--precision", precision) for precision in ("32", "bf16")]
    assert [code for code, *_ in texts] == [0, 0]
    assert texts[0][1][: len(PROMPT) + 3] == texts[1][1][: len(PROMPT) + 3]
    model = text_generation.load_language_model(trained)
    said = []
    model.to(torch.bfloat16).net.register_forward_hook(lambda net, args, out: said.append(out.dtype))
    model.complete([PROMPT], max_new_tokens=2)
    assert set(said) == {torch.bfloat16}


def test_prompts_of_a_file_in_batches(zoo, trained, here):
    prompts = [PROMPT, "A", "If the class is", "In", "Note: "]
    (here / "prompts.txt").write_text("\n".join(prompts) + "\n")
    base = ["generate", "--ckpt_path", trained, "--prompts", "prompts.txt", "--max_new_tokens", 12]
    code, out, _ = zoo(*base, "--out", "texts.jsonl", "--batch_size", 2)
    assert (code, out) == (0, "5 texts in texts.jsonl\n")
    found = [json.loads(line) for line in (here / "texts.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in found] == prompts
    assert all(len(row["text"]) == 12 for row in found)
    code, out, _ = zoo(*base)
    assert code == 0
    assert out == "".join(f"{row['prompt']}{row['text']}\n\n" for row in found), "the same in batches of any size"


def test_lines_of_a_file_end_where_a_line_ends(here):
    """Not at other signs that Python takes for ends of lines; a mark of Windows' editors is no text."""
    for name, text in (("p.jsonl", '{"prompt": "a\u2028b"}\r\n{"prompt": "c"}'), ("p.txt", "a\u2028b\nc\n")):
        (here / name).write_text(text, encoding="utf-8-sig")
        assert text_generation.read_prompts(here / name) == ["a\u2028b", "c"]


def test_prompts_with_several_lines(zoo, trained, here):
    (here / "p.jsonl").write_text(json.dumps({"prompt": "a\nb"}) + "\n" + json.dumps({"prompt": "if x:"}) + "\n")
    base = ["generate", "--ckpt_path", trained, "--prompts", "p.jsonl", "--max_new_tokens", 3, "--temperature", 0]
    assert zoo(*base)[1].startswith("a\nb")


def test_a_text_ends_before_its_stop(zoo, trained):
    base = ["generate", "--ckpt_path", trained, "--prompt", PROMPT, "--max_new_tokens", 60]
    whole = zoo(*base)[1].removesuffix("\n")
    stop = whole[len(PROMPT) + 10 : len(PROMPT) + 13]
    assert zoo(*base, "--stop", stop, "--stop", "\x00")[1] == f"{whole[: whole.index(stop, len(PROMPT))]}\n"


def test_of_a_long_prompt_the_end_is_kept_and_that_is_said(zoo, trained):
    long = "The statement is the value of the expression"
    base = ["generate", "--ckpt_path", trained, "--max_new_tokens", 20]
    code, out, err = zoo(*base, "--prompt", long)
    said = f"zoo: the prompt has {len(long)} tokens, more than the context of 32: only its end is used"
    assert (code, err.splitlines()[0]) == (0, said)
    assert out.startswith(long)
    cut = zoo(*base, "--prompt", long[-32:])[1]
    assert out.removeprefix(long) == cut.removeprefix(long[-32:])


def test_a_folder_of_hugging_face(zoo, published):
    base = ["generate", "--ckpt_path", published, "--prompt", "the statement", "--max_new_tokens", 8]
    code, out, err = zoo(*base, "--temperature", 0)
    assert (code, err) == (0, "")
    theirs, tokenizer = GPT2LMHeadModel.from_pretrained(published).eval(), Tokenizer.load(published)
    ids = torch.tensor([tokenizer.encode("the statement")])
    options = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": tokenizer.eos_id}
    expected = theirs.generate(ids, do_sample=False, **options)[0, ids.shape[1] :].tolist()
    expected = expected[: expected.index(tokenizer.eos_id)] if tokenizer.eos_id in expected else expected
    assert out == "the statement" + tokenizer.decode([*ids[0].tolist(), *expected])[len("the statement") :] + "\n"


def test_a_llama_of_hugging_face_gets_the_beginning_of_a_text(zoo, tmp_path):
    """As its tokenizer wants it; and computes in the precision of its file, or that which is asked for."""
    own = tokenizers.Tokenizer.from_str(Tokenizer.train("bpe", ["the statement is"] * 3, vocab_size=270).source)
    own.add_special_tokens(["<s>", "</s>"])
    first, last = own.token_to_id("<s>"), own.token_to_id("</s>")
    own.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", first)])
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": first, "eos_token_id": last, "vocab_size": own.get_vocab_size()}
    theirs = LlamaForCausalLM(LlamaConfig(**size, **ids, max_position_embeddings=32, initializer_range=1.0)).bfloat16()
    theirs.save_pretrained(tmp_path)
    kind = PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>")
    kind.save_pretrained(tmp_path)
    given = kind("the statement", return_tensors="pt")
    options = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
    expected = theirs.eval().float().generate(given.input_ids, **options)[0, given.input_ids.shape[1] :]
    base = ["generate", "--ckpt_path", tmp_path, "--prompt", "the statement", "--max_new_tokens", 8, "--temperature", 0]
    code, out, err = zoo(*base, "--precision", 32)
    assert (code, err) == (0, "")
    assert out == f"the statement{kind.decode(expected, skip_special_tokens=True)}\n"
    model = text_generation.load_language_model(tmp_path)
    assert model.encode_prompt("the") == model.encode_prompt("<s>the") == kind("the").input_ids
    several = [last, int(expected[3])]  # as those of LLaMA-Instruct are
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": several}))
    expected = theirs.generate(given.input_ids, eos_token_id=several, **options)[0, given.input_ids.shape[1] : -1]
    assert len(expected) <= 3
    assert zoo(*base, "--precision", 32)[1] == f"the statement{kind.decode(expected, skip_special_tokens=True)}\n"
    assert next(model.parameters()).dtype == torch.bfloat16


# Mistakes -------------------------------------------------------------------------------------------------------------

MISTAKES = {
    "no checkpoint": ("--ckpt_path no.ckpt --prompt a", ["no checkpoint no.ckpt"]),
    "another kind": ("--ckpt_path DIGITS --prompt a", ["MLPClassifier", "not a language model"]),
    "empty prompt": ("--ckpt_path GPT --prompt=", ["the prompt is empty"]),
    "no prompt": ("--ckpt_path GPT", ["--prompt"]),
    "two prompts": ("--ckpt_path GPT --prompt a --prompts b", ["--prompts", "not allowed with"]),
    "no file": ("--ckpt_path GPT --prompts no.txt", ["no file of prompts no.txt"]),
    "empty file": ("--ckpt_path GPT --prompts EMPTY", ["holds no prompts"]),
    "empty line": ("--ckpt_path GPT --prompts GAP", ["line 2: the prompt is empty"]),
    "binary file": ("--ckpt_path GPT --prompts BINARY", ["is not text in UTF-8"]),
    "not JSON": ("--ckpt_path GPT --prompts JSON", ["line 1", '"prompt"']),
    "unknown character": ("--ckpt_path GPT --prompt \u4f60", ["\u4f60"]),
    "temperature": ("--ckpt_path GPT --prompt a --temperature -1", ["temperature must be", "-1"]),
    "top_k": ("--ckpt_path GPT --prompt a --top_k 0", ["top_k must be", "0"]),
    "no number": ("--ckpt_path GPT --prompt a --top_p x", ["--top_p", "'x'"]),
    "max_new_tokens": ("--ckpt_path GPT --prompt a --max_new_tokens 0", ["--max_new_tokens must be at least 1, got 0"]),
    "out": ("--ckpt_path GPT --prompt a --out x.txt", ["x.txt must end in .jsonl"]),
    "out is a folder": ("--ckpt_path GPT --prompt a --out DOTTED", ["is a folder"]),
    "empty stop": ("--ckpt_path GPT --prompt a --stop=", ["--stop is empty"]),
    "out's folder": ("--ckpt_path GPT --prompt a --out there/x.jsonl", ["no folder 'there'"]),
    "device": ("--ckpt_path GPT --prompt a --device abc", ["--device abc"]),
    "misspelt option": ("--ckpt_path GPT --prompt a --topk 3", ["no option --topk; did you mean --top_k"]),
    "misspelt prompt": ("--ckpt_path GPT --promt a", ["no option --promt; did you mean --prompt"]),
    "misspelt checkpoint": ("--ckpt-path=GPT --prompt a", ["no option --ckpt-path; did you mean --ckpt_path"]),
    "unknown option": ("--ckpt_path GPT --prompt a --xyzzy", ["no option --xyzzy; see zoo generate --help"]),
    "left over": ("--ckpt_path GPT --prompt a b", ["unrecognized arguments: b"]),
    "no averages": ("--ckpt_path RAW --prompt a --weights ema", ["holds no EMA weights"]),
    "wrong tokenizer": ("--ckpt_path GPT --prompt a --tokenizer HF", ["270 tokens", "the model in", "vocab_size"]),
    "no tokenizer": ("--ckpt_path BARE --prompt a", ["holds no tokenizer", "--tokenizer"]),
    "no model": ("--ckpt_path STATE --prompt a", ["does not name the class"]),
    "cut file": ("--ckpt_path HALF --prompt a", ["is not a whole checkpoint"]),
    "other folder": ("--ckpt_path CONFIG --prompt a", ["of type 'resnet'", "gpt2, llama"]),
    "empty folder": ("--ckpt_path NOTHING --prompt a", ["is a folder without .metadata"]),
}


@pytest.fixture(scope="module")
def files(trained, digits, published, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    saved = torch.load(trained, weights_only=True)
    torch.save({k: v for k, v in saved.items() if k != "ema_params"}, folder / "RAW")
    torch.save({k: v for k, v in saved.items() if k != "tokenizer"}, folder / "BARE")
    torch.save({"state_dict": saved["state_dict"]}, folder / "STATE")
    (folder / "HALF").write_bytes(trained.read_bytes()[:2000])
    (folder / "EMPTY").write_text("")
    (folder / "GAP").write_text("a\n\nb\n")
    (folder / "BINARY").write_bytes(b"\xff\xfe\x00")
    (folder / "JSON.jsonl").write_text('{"text": "a"}\n')
    (folder / "CONFIG").mkdir()
    (folder / "CONFIG" / "config.json").write_text('{"model_type": "resnet"}')
    (folder / "NOTHING").mkdir()
    (folder / "DOTTED.jsonl").mkdir()
    found = {path.stem: str(path) for path in folder.iterdir()}
    return {**found, "GPT": str(trained), "DIGITS": str(digits), "HF": str(published)}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(zoo, here, files, name):
    command, words = MISTAKES[name]
    code, out, err = zoo("generate", *[files.get(word, word) for word in command.split()])
    assert code == 2, err
    assert len(err.splitlines()) == 1
    assert err.startswith("zoo: error: ")
    assert all(word in err for word in words), err
    assert out == ""
    assert {path.name for path in here.iterdir()} == {"configs"}, "nothing is written"


def test_a_prompt_may_look_like_an_option():
    """As argparse has it: with a blank in it, or behind an equals sign."""
    for words in (["--prompt", "--promt is misspelt"], ["--prompt=--promt is misspelt"], ["--prompt=--x"]):
        parser = OptionParser("generate", "")
        generate.add_arguments(parser)
        given = parser.parse_args(["--ckpt_path", "a", *words])
        assert given.prompt == words[-1].removeprefix("--prompt=")


def test_help(zoo):
    code, out, err = zoo("generate", "--help")
    assert (code, err) == (0, "")
    assert all(word in out for word in ("--ckpt_path", "--prompts", "--repetition_penalty", "--stop"))


@pytest.mark.slow
def test_ctrl_c_ends_it(trained, here):
    """The text so far stays on the terminal."""
    command = [sys.executable, "-m", "zoo", "generate", "--ckpt_path", str(trained), "--prompt", PROMPT]
    process = subprocess.Popen(
        [*command, "--max_new_tokens", "1000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs ignore
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(len(PROMPT) + 20).startswith(PROMPT.encode())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert b"Traceback" not in err


def test_ctrl_c_leaves_no_file_half_written(zoo, trained, here, monkeypatch):
    (here / "p.txt").write_text("a\n" * 3)
    seen = []
    original = text_generation.LanguageModel.complete

    def complete(self, prompts, **options):
        if seen:
            raise KeyboardInterrupt
        seen.append(prompts)
        return original(self, prompts, **options)

    monkeypatch.setattr(text_generation.LanguageModel, "complete", complete)
    options = ["--prompts", "p.txt", "--batch_size", 2, "--max_new_tokens", 3, "--out", "x.jsonl"]
    assert zoo("generate", "--ckpt_path", trained, *options)[0] == 130
    assert seen == [["a", "a"]], "after the first batch"
    assert {path.name for path in here.iterdir()} == {"configs", "p.txt"}
