"""Text generation with the language model of a checkpoint or a Hugging Face folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo.checkpoints import Checkpoint, Weights
from zoo.distributed import say
from zoo.errors import UserError
from zoo.files import atomic_file
from zoo.tasks.language import LanguageModel
from zoo.terminal import visible
from zoo.text.tokenizer import Tokenizer
from zoo.trust.reading import read_json

# Networks of zoo by the model_type in a config.json of Hugging Face.
NETWORKS = {"gpt2": "GPT", "llama": "LLaMA"}

# Writing --------------------------------------------------------------------------------------------------------------


def write_texts(
    model: LanguageModel,
    prompts: Sequence[str],
    options: dict[str, Any],
    batch_size: int = 16,
    out: str | None = None,
) -> None:
    """Generate texts, and print them or write them to a file.

    A single text is printed token by token, several of them each when it is complete.

    Args:
        model: the language model.
        prompts: texts to continue.
        options: arguments of ``model.complete``.
        batch_size: prompts per batch.
        out: a ``.jsonl`` file, written whole or not at all; None prints.
    """
    if out is not None:
        write_file(model, prompts, options, batch_size, Path(out))
        return
    try:
        if len(prompts) == 1:
            print(prompts[0], end="", flush=True)
            model.complete(prompts, on_text=lambda _, text: print(shown(text), end="", flush=True), **options)
            print()
            return
        for prompt, text in generate_batches(model, prompts, options, batch_size):
            print(f"{prompt}{shown(text)}\n", flush=True)
    except KeyboardInterrupt:
        print(flush=True)  # so that the prompt of the shell begins a line
        raise


def shown(text: str) -> str:
    """Return generated text for stdout: without control characters if that is a terminal."""
    return visible(text) if sys.stdout.isatty() else text


def write_file(
    model: LanguageModel,
    prompts: Sequence[str],
    options: dict[str, Any],
    batch_size: int,
    out: Path,
) -> None:
    """Write each prompt and its text as a line of JSON."""
    with atomic_file(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for prompt, text in generate_batches(model, prompts, options, batch_size):
            row = json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False)
            stream.write(row + "\n")
    print(f"{len(prompts)} texts in {out}")


def generate_batches(
    model: LanguageModel,
    prompts: Sequence[str],
    options: dict[str, Any],
    batch_size: int,
) -> Iterator[tuple[str, str]]:
    """Yield each prompt and its text, which does not depend on the batch size."""
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        # The row of a prompt, not its place in the batch, decides its random numbers.
        rows = range(start, start + len(batch))
        texts = model.complete(batch, rows=rows, **options)
        yield from zip(batch, texts, strict=True)


def read_prompts(path: Path) -> list[str]:
    """Read a prompt from each line, or from the key ``prompt`` of each line of a ``.jsonl`` file.

    Raises:
        UserError: if the file is absent or not text in UTF-8, or a prompt is empty.
    """
    if not path.is_file():
        raise UserError(f"no file of prompts {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig: some editors put a byte order mark first
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8") from None
    text = text.removesuffix("\n")
    if not text:
        raise UserError(f"{path} holds no prompts")
    prompts = []
    # Not splitlines(), which also splits at characters within a text.
    for number, line in enumerate(text.split("\n"), 1):
        prompt: Any = line
        if path.suffix == ".jsonl":
            try:
                prompt = json.loads(line)["prompt"]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(f'{path}, line {number}: not {{"prompt": "..."}}') from None
        if not isinstance(prompt, str) or not prompt:
            raise UserError(f"{path}, line {number}: the prompt is empty")
        prompts.append(prompt)
    return prompts


def warn_of_truncation(model: LanguageModel, prompts: Sequence[str], max_new_tokens: int) -> None:
    """Print which prompts are longer than the context, and whether the texts will be."""
    lengths = [len(model.encode_prompt(prompt)) for prompt in prompts]
    context = model.context
    for number, length in enumerate(lengths, 1):
        if length > context:
            which = f"prompt {number}" if len(prompts) > 1 else "the prompt"
            say(f"{which} has {length} tokens, more than the context of {context}: only its end is used")
    # The last token is never fed back.
    if min(max(lengths), context) + max_new_tokens > context + 1:
        say(f"beyond the context of {context} tokens, generation continues from the last half of the context")


# Loading --------------------------------------------------------------------------------------------------------------


def load_language_model(path: Path, weights: Weights = "auto", tokenizer: str | None = None) -> LanguageModel:
    """Load a language model and its tokenizer, in eval mode.

    Args:
        path: a checkpoint, or a folder of Hugging Face with a GPT-2 or LLaMA model.
        weights: ``auto`` takes EMA weights if the checkpoint has any.
        tokenizer: path of another tokenizer than that of the model.

    Raises:
        UserError: if it is no language model, or has no tokenizer or one with another vocabulary size.
    """
    is_hugging_face = (path / "config.json").is_file()
    model = load_hugging_face_folder(path) if is_hugging_face else load_checkpoint(path, weights)
    if tokenizer is not None:
        model.tokenizer = Tokenizer.load(tokenizer)
    if model.tokenizer is None:
        raise UserError(f"{path} holds no tokenizer: name one with --tokenizer (tokenizer.json or tokenizer.model)")
    model.add_bos_token = is_hugging_face  # as transformers does: LLaMA was trained on no text without it
    check_vocab_size(model, path, tokenizer)
    return model.eval()


def check_vocab_size(model: LanguageModel, path: Path, tokenizer: str | None) -> None:
    """Raise a UserError if tokenizer and model have different vocabulary sizes."""
    assert model.tokenizer is not None
    tokens = len(model.tokenizer)
    size = model.vocab_size
    # Some models pad their vocabulary to a multiple of 64 for speed.
    is_padded = size % 64 == 0 and 0 < size - tokens < 512
    if tokens != size and not is_padded:
        name = f"the tokenizer {tokenizer}" if tokenizer else "its tokenizer"
        raise UserError(f"{name} has {tokens} tokens, but the model in {path} has a vocab_size of {size}")


def load_checkpoint(path: Path, weights: Weights) -> LanguageModel:
    """Load the language model of a checkpoint."""
    model = Checkpoint(path).build(weights)
    if not isinstance(model, LanguageModel):
        raise UserError(f"{path} holds a {type(model).__name__}, which is not a language model")
    return model


def load_hugging_face_folder(path: Path) -> LanguageModel:
    """Load the language model of a folder of Hugging Face."""
    from zoo import models

    model_type = read_config(path / "config.json").get("model_type")
    if model_type not in NETWORKS:
        raise UserError(f"{path} holds a model of type {model_type!r}; zoo generates text with {', '.join(NETWORKS)}")
    net = getattr(models, NETWORKS[model_type]).from_pretrained(str(path))
    model = LanguageModel(net, vocab_size=net.vocab_size, block_size=net.block_size)
    if any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        model.tokenizer = Tokenizer.load(path)
    model.eos_ids = read_eos_ids(path / "generation_config.json")
    return model


def read_eos_ids(path: Path) -> list[int]:
    """Return the token ids that end a text, of which LLaMA-Instruct has three; an empty list without the file."""
    if not path.is_file():
        return []
    ids = read_config(path).get("eos_token_id")
    if ids is None:
        return []
    return ids if isinstance(ids, list) else [ids]


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON file of Hugging Face."""
    try:
        return read_json(path)
    except UserError:
        raise UserError(f"{path} is not a config of Hugging Face") from None
