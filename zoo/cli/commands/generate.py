"""``zoo generate``: generate text with a language model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

name = "generate"
help = "generate text with a language model: continue a prompt, or each prompt of a file"

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from zoo.cli.common_options import (
        CKPT_PATH_HELP,
        add_adapter_option,
        add_allow_import_option,
        add_device_option,
        add_weights_option,
    )

    parser.add_argument(
        "--ckpt_path",
        required=True,
        metavar="PATH",
        help=f"{CKPT_PATH_HELP}; or a Hugging Face folder of a GPT-2 or LLaMA model",
    )
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", metavar="TEXT", help="text to continue")
    prompts.add_argument(
        "--prompts",
        metavar="FILE",
        help="file with a prompt in each line, or .jsonl with a prompt under 'prompt' in each line",
    )
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        default=200,
        metavar="N",
        help="maximum number of generated tokens (default: 200)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="sampling temperature; 0 is greedy decoding (default: 1.0)",
    )
    parser.add_argument("--top_k", type=int, metavar="K", help="sample from the K most probable tokens")
    parser.add_argument(
        "--top_p",
        type=float,
        metavar="P",
        help="nucleus sampling: sample from the smallest set of tokens with total probability P",
    )
    parser.add_argument(
        "--min_p",
        type=float,
        metavar="P",
        help="sample from the tokens with at least P times the probability of the most probable one",
    )
    parser.add_argument(
        "--repetition_penalty",
        type=float,
        default=1.0,
        help="above 1 makes tokens that occurred before less probable (default: 1.0)",
    )
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop before this text; repeatable")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    parser.add_argument("--out", metavar="FILE", help="write prompts and generated texts to a .jsonl file")
    parser.add_argument(
        "--batch_size",
        type=int,
        default=16,
        metavar="N",
        help="prompts per batch; the texts do not depend on it (default: 16)",
    )
    parser.add_argument("--tokenizer", metavar="PATH", help="tokenizer to use instead of the one of the model")
    parser.add_argument(
        "--precision",
        choices=("32", "bf16"),
        help="dtype of weights and arithmetic (default: that of the file)",
    )
    add_device_option(parser)
    add_weights_option(parser)
    add_adapter_option(parser)
    add_allow_import_option(parser)


def run(args: Any) -> None:
    import torch

    from zoo.adapters import load_adapter
    from zoo.cli.common_options import move_to_device
    from zoo.cli.set_up import set_up
    from zoo.cli.text_generation import load_language_model, read_prompts, warn_of_truncation, write_texts
    from zoo.tasks.token_sampling import SamplingConfig

    set_up(args.allow_import)
    prompts = [args.prompt]
    if args.prompts is not None:
        prompts = read_prompts(Path(args.prompts))
    check_options(args, prompts)
    options = {name: getattr(args, name) for name in SAMPLING}
    SamplingConfig(**options)  # raises an error for a value out of range
    model = load_language_model(Path(args.ckpt_path), args.weights, args.tokenizer)
    if args.adapter is not None:
        load_adapter(model, args.adapter, args.weights)
    dtype = None
    if args.precision is not None:
        dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    move_to_device(model, args.device, dtype)
    warn_of_truncation(model, prompts, args.max_new_tokens)
    options.update(max_new_tokens=args.max_new_tokens, seed=args.seed, stop=args.stop)
    write_texts(model, prompts, options, batch_size=args.batch_size, out=args.out)


def check_options(args: Any, prompts: list[str]) -> None:
    """Raise a UserError for options that the parser accepts and that make no sense."""
    from zoo.cli.common_options import require_at_least_1, require_parent
    from zoo.errors import UserError

    if args.out is not None:
        out = Path(args.out)
        if out.suffix != ".jsonl":
            raise UserError(f"--out {out} must end in .jsonl")
        require_parent(out)
        if out.is_dir():
            raise UserError(f"--out {out} is a folder")
    if not all(args.stop):
        raise UserError("--stop is empty: every text would end at once")
    if not all(prompts):
        raise UserError("the prompt is empty: a language model continues a text")
    require_at_least_1(args, "batch_size", "max_new_tokens")
