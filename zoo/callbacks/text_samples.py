"""What a language model writes while it learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from zoo.callbacks.output_folder import output_folder
from zoo.files import write_text

SHARDED_STRATEGIES = (ModelParallelStrategy, FSDPStrategy, DeepSpeedStrategy)  # of whose weights no process has all


class TextSamples(L.Callback):
    """Let a language model write on from a few texts after every validation.

    ``samples/<step>.txt`` in the run folder holds them, and loggers that take text get them as ``samples``. Works with
    any module that has ``generate`` and a ``tokenizer``, as ``LanguageModel`` has. The draws have a generator of their
    own, so training goes on as it would without. With several processes the first one writes, where weights are
    divided with the help of the others. What is wrong with prompts or options is said before training. Logs no
    numbers.

    Args:
        prompts: texts to go on from; null takes the beginnings of the first validation samples.
        num_samples: how many of these.
        prompt_tokens: tokens of such a beginning.
        max_new_tokens: how many are written at most.
        temperature: 0 takes the most probable token.
        top_k: draw from so many of the most probable tokens; null for all.
        seed: of the draws, the same at every validation.
        dirpath: folder of ``samples``; null is the run folder.
    """

    def __init__(
        self,
        prompts: list[str] | None = None,
        num_samples: int = 3,
        prompt_tokens: int = 16,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        seed: int = 0,
        dirpath: str | None = None,
    ) -> None:
        least = {"num_samples": num_samples, "prompt_tokens": prompt_tokens, "max_new_tokens": max_new_tokens}
        for name, number in least.items():
            if number < 1:
                raise ValueError(f"{name} starts at 1, got {number}")
        if prompts is not None and not (prompts and all(prompts)):
            raise ValueError("prompts must be texts that are not empty; null takes beginnings of the validation text")
        self.prompts, self.num_samples, self.prompt_tokens = prompts, num_samples, prompt_tokens
        self.options = {
            "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "seed": seed,
        }  # fmt: skip
        self.dirpath = dirpath
        self._folder = Path()
        self._texts: list[tuple[str, str]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # All processes have to ask for log_dir together, so not later, when only the first one writes.
        self._folder = output_folder(trainer, self.dirpath) / "samples"
        if not (hasattr(pl_module, "generate") and hasattr(pl_module, "tokenizer")):
            raise ValueError(f"TextSamples is for language models, and {type(pl_module).__name__} is none")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A try, for a mistake would end the run at its first validation. Memory of divided weights is not there yet.
        if not is_sharded(trainer):
            self._generate(pl_module, self._prompts(pl_module) or [[0]], {**self.options, "max_new_tokens": 1})

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        # Here, not at the end: averages of EMA are swapped back by then.
        if batch_idx == 0 and (trainer.is_global_zero or is_sharded(trainer)) and not trainer.sanity_checking:
            rows = self._prompts(pl_module) or batch[0][: self.num_samples, : self.prompt_tokens].tolist()
            texts = self._generate(
                pl_module, trainer.strategy.broadcast(rows) if is_sharded(trainer) else rows, self.options
            )
            self._texts = texts if trainer.is_global_zero else []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        texts, self._texts = self._texts, []
        if not texts:
            return
        text = "\n\n".join(f"--- {i}\n{prompt}|{new}" for i, (prompt, new) in enumerate(texts, 1)) + "\n"
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{trainer.global_step:06d}.txt"
        write_text(path, text)
        for logger in trainer.loggers:
            log_text(logger, texts, text, trainer.global_step)

    def _prompts(self, module: Any) -> list[list[int]] | None:
        if module.tokenizer is None:
            raise ValueError("TextSamples needs data with a tokenizer")
        if self.prompts is None:
            return None
        return [module.tokenizer.encode(prompt, parse_special=True) for prompt in self.prompts]

    def _generate(self, module: Any, rows: list[list[int]], options: dict[str, Any]) -> list[tuple[str, str]]:
        tokenizer, found = module.tokenizer, module.generate(rows, **options)
        texts = (tokenizer.decode(row) for row in rows)
        return [
            (text, tokenizer.decode([*row, *new])[len(text) :])
            for text, row, new in zip(texts, rows, found, strict=True)
        ]


def is_sharded(trainer: L.Trainer) -> bool:
    """Whether the network computes only where all processes call it."""
    return isinstance(trainer.strategy, SHARDED_STRATEGIES)


def log_text(logger: Any, texts: Sequence[tuple[str, str]], whole: str, step: int) -> None:
    """Hand texts to a logger that takes them, as TensorBoard's and Weights & Biases' do."""
    if hasattr(logger, "log_text"):
        logger.log_text("samples", columns=["prompt", "text"], data=[list(pair) for pair in texts], step=step)
    elif hasattr(experiment := getattr(logger, "experiment", None), "add_text"):
        indented = "\n".join(f"    {line}" for line in whole.splitlines())  # Markdown for "as it is"
        experiment.add_text("samples", indented, step)  # type: ignore[union-attr]
