"""``zoo generate``: a language model in a checkpoint, or a folder of Hugging Face, writes on from prompts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, get_args

import torch

from zoo.cli.option_parser import OptionParser
from zoo.cli.trainer import Weights
from zoo.errors import UserError
from zoo.rebuild import rebuild
from zoo.tasks.language import LanguageModel
from zoo.tasks.token_sampling import SamplingConfig
from zoo.text.tokenizer import Tokenizer

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
PUBLISHED = {"gpt2": "GPT", "llama": "LLaMA"}  # networks by the model_type of a config.json


def run(argv: list[str]) -> int:
    """Write on from one prompt, or from those of a file; return the exit code."""
    given = parser().parse_args(argv)
    prompts = read_prompts(Path(given.prompts)) if given.prompts is not None else [given.prompt]
    if given.out is not None and Path(given.out).suffix != ".jsonl":
        raise UserError(f"--out {given.out} must end in .jsonl")
    if given.out is not None and not Path(given.out).parent.is_dir():
        raise UserError(f"no folder {str(Path(given.out).parent)!r} to write {Path(given.out).name} into")
    if given.out is not None and Path(given.out).is_dir():
        raise UserError(f"--out {given.out} is a folder")
    if not all(given.stop):
        raise UserError("--stop is empty: no text would begin")
    if not all(prompts):
        raise UserError("the prompt is empty: a language model goes on from a text")
    if given.batch_size < 1:
        raise UserError(f"--batch_size starts at 1, got {given.batch_size}")
    if given.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens starts at 1, got {given.max_new_tokens}")
    SamplingConfig(**{name: getattr(given, name) for name in SAMPLING})  # which says what is out of range
    model = load(Path(given.ckpt_path), given.weights, given.tokenizer)
    if given.precision is not None:
        model.to(torch.bfloat16 if given.precision == "bf16" else torch.float32)
    try:
        model.to(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"--device {given.device}: {str(error).splitlines()[0]}") from None
    say_what_is_cut(model, prompts, given.max_new_tokens)
    options = {name: getattr(given, name) for name in (*SAMPLING, "max_new_tokens", "seed")}
    write(model, prompts, given, {**options, "stop": given.stop})
    return 0


def write(model: LanguageModel, prompts: Sequence[str], given: argparse.Namespace, options: dict[str, Any]) -> None:
    """Print texts as they come, or each when it is done where there are several; or write them to a file."""
    if given.out is not None:
        with new_file(Path(given.out)) as file:
            for prompt, text in completed(model, prompts, given.batch_size, options):
                file.write(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) + "\n")
        print(f"{len(prompts)} texts in {given.out}")
        return
    try:
        if len(prompts) == 1:
            print(prompts[0], end="", flush=True)
            model.complete(prompts, on_text=lambda _, text: print(text, end="", flush=True), **options)
            print()
            return
        for prompt, text in completed(model, prompts, given.batch_size, options):
            print(f"{prompt}{text}\n", flush=True)
    except KeyboardInterrupt:
        print(flush=True)  # the shell's prompt gets a line of its own
        raise


def completed(
    model: LanguageModel, prompts: Sequence[str], batch_size: int, options: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """Prompts and what follows them, batch by batch; the same whatever the size of a batch."""
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        rows = range(start, start + len(batch))
        yield from zip(batch, model.complete(batch, rows=rows, **options), strict=True)


@contextmanager
def new_file(path: Path) -> Iterator[TextIO]:
    """A file that is there whole or not at all."""
    new = path.with_name(path.name + ".new")
    try:
        with new.open("w", encoding="utf-8") as stream:
            yield stream
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def read_prompts(path: Path) -> list[str]:
    """A prompt a line, or of ``.jsonl`` the texts under ``prompt``."""
    if not path.is_file():
        raise UserError(f"no file of prompts {path}")
    try:
        # not splitlines, which also cuts at signs within a text; -sig for the mark that editors put first
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8") from None
    found = []
    for number, line in enumerate(lines if lines != [""] else [], 1):
        text: Any = line
        if path.suffix == ".jsonl":
            try:
                text = json.loads(line)["prompt"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f'{path}, line {number}: not {{"prompt": "..."}}') from None
        if not isinstance(text, str) or not text:
            raise UserError(f"{path}, line {number}: the prompt is empty")
        found.append(text)
    if not found:
        raise UserError(f"{path} holds no prompts")
    return found


def say_what_is_cut(model: LanguageModel, prompts: Sequence[str], max_new_tokens: int) -> None:
    assert model.tokenizer is not None
    lengths = [len(model.encode_prompt(prompt)) for prompt in prompts]
    context = model.context
    for number, length in enumerate(lengths, 1):
        if length > context:
            which = f"prompt {number}" if len(prompts) > 1 else "the prompt"
            _say(f"{which} has {length} tokens, more than the context of {context}: its end is kept")
    if min(max(lengths), context) + max_new_tokens > context + 1:
        _say(f"past the context of {context} tokens, the last half of it is kept and the text goes on from there")


def _say(text: str) -> None:
    print(f"zoo: {text}", file=sys.stderr)


# The model ------------------------------------------------------------------------------------------------------------


def load(path: Path, weights: Weights = "auto", tokenizer: str | None = None) -> LanguageModel:
    """The language model of a checkpoint, or of a folder of Hugging Face, with its tokenizer."""
    published = (path / "config.json").is_file()
    model = from_folder(path) if published else from_checkpoint(path, weights)
    if tokenizer is not None:
        model.tokenizer = Tokenizer.load(tokenizer)
    if model.tokenizer is None:
        raise UserError(f"{path} holds no tokenizer: name one with --tokenizer (tokenizer.json or tokenizer.model)")
    model.add_bos_token = published  # as transformers does: LLaMA has seen no text without
    known, room = len(model.tokenizer), model.vocab_size
    if known != room and not (room % 64 == 0 and 0 < room - known < 512):  # some pad their vocabulary for speed
        raise UserError(
            f"the tokenizer {tokenizer or 'there'} knows {known} tokens, but the model in {path} has {room}"
        )
    return model.eval()


def from_checkpoint(path: Path, weights: Weights) -> LanguageModel:
    model = rebuild(path, weights)
    if not isinstance(model, LanguageModel):
        raise UserError(f"{path} holds a {type(model).__name__}, which is no language model and writes no text")
    return model


def from_folder(path: Path) -> LanguageModel:
    from zoo import models

    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError):
        raise UserError(f"{path / 'config.json'} is not a config of Hugging Face") from None
    if kind not in PUBLISHED:
        raise UserError(f"{path} holds a model of type {kind!r}; zoo writes texts with {', '.join(PUBLISHED)}")
    net = getattr(models, PUBLISHED[kind]).from_pretrained(str(path))
    model = LanguageModel(net, vocab_size=net.vocab_size, block_size=net.block_size)
    if any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        model.tokenizer = Tokenizer.load(path)
    model.eos_ids = ends(path / "generation_config.json")
    return model


def ends(path: Path) -> list[int]:
    """The tokens that end a text by a ``generation_config.json``, if it is there: those of LLaMA-Instruct are three."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    except (ValueError, AttributeError):
        raise UserError(f"{path} is not a config of Hugging Face") from None
    return found if isinstance(found, list) else [] if found is None else [found]


# The command line -----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    text = "Let a language model write on from a prompt, to the terminal, or from those of a file."
    own = OptionParser("generate", text)
    own.add_argument("--ckpt_path", required=True, metavar="FILE", help="a checkpoint, or a folder of Hugging Face")
    prompts = own.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", metavar="TEXT", help="what to go on from")
    prompts.add_argument("--prompts", metavar="FILE", help="a prompt a line, or of .jsonl those under 'prompt'")
    own.add_argument("--max_new_tokens", type=int, default=200, metavar="N", help="how many at most (200)")
    own.add_argument("--temperature", type=float, default=1.0, help="0 takes the most probable token (1.0)")
    own.add_argument("--top_k", type=int, metavar="K", help="draw from the K most probable tokens")
    own.add_argument("--top_p", type=float, metavar="P", help="draw from those that together have probability P")
    own.add_argument("--min_p", type=float, metavar="P", help="draw from those P times as probable as the first")
    own.add_argument("--repetition_penalty", type=float, default=1.0, help="above 1 for less repetition (1.0)")
    own.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends a text; may be given repeatedly")
    own.add_argument("--seed", type=int, default=0, help="another one, another text (0)")
    own.add_argument("--out", metavar="FILE", help="write prompts and texts to a .jsonl file")
    own.add_argument("--batch_size", type=int, default=16, metavar="N", help="prompts of a file at a time (16)")
    own.add_argument("--tokenizer", metavar="PATH", help="in place of the one that came with the weights")
    halves = "of the weights and all arithmetic: bf16 reads half as much memory for each token (as in the file)"
    own.add_argument("--precision", choices=("32", "bf16"), help=halves)
    own.add_argument("--device", metavar="NAME", help="cpu, cuda, ...; cuda where there is one")
    averages = "averages of EMA (where there are any), or raw weights; auto by default"
    own.add_argument("--weights", choices=get_args(Weights), default="auto", help=averages)
    return own
