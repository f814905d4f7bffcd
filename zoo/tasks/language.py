"""Causal language modelling: prediction of the next token."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.losses.adapt import adapt_loss
from zoo.losses.embeddings import at_least_float32
from zoo.tasks import generation
from zoo.tasks.base import Task, require
from zoo.tasks.generation import TextStream
from zoo.tasks.token_sampling import SamplingConfig
from zoo.tasks.tokenized import IGNORE_INDEX, TextTask, num_targets


class LanguageModel(TextTask, Task):
    """Causal language model: any network that maps tokens to logits of the next token at each position.

    A batch is ``(x, y)``, token ids ``(b, t)`` each: ``y`` is ``x`` shifted by one token, and -100 (the loss's
    ``ignore_index``) at positions that are ignored. The network returns logits ``(b, t, v)``. The loss is the mean over
    all other tokens. Logs ``loss``, and in validation and test ``perplexity`` and ``bits_per_byte`` (of the text in
    UTF-8, if the data knows the mean number of bytes per token).

    Args:
        vocab_size: number of tokens; null takes it from the data.
        block_size: context length in tokens; null takes it from the data.
    """

    # Tokens that end a text, in addition to the tokenizer's: those of published weights.
    eos_ids: Collection[int] = ()
    # Whether a prompt begins with the tokenizer's beginning-of-text token, as published weights expect.
    add_bos_token = False

    def __init__(
        self,
        net: nn.Module,
        vocab_size: int | None = None,
        block_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(net=net, **kwargs)
        self.vocab_size, self.block_size = require(self, vocab_size=vocab_size, block_size=block_size)
        loss = self.loss or nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX)
        self.loss = adapt_loss(loss, "multiclass", vocab_size)
        self.bytes_per_token: float | None = None

    def forward(self, tokens: Int[Tensor, "b t"], **kwargs: Any) -> Float[Tensor, "b t v"]:
        return self.net(tokens, **kwargs)

    # Loss and metrics -------------------------------------------------------------------------------------------------

    def step(self, batch: Any, stage: str) -> Tensor:
        x, y = batch
        self._check(x, y)
        logits = at_least_float32(self(x)).flatten(0, 1)  # (b t, v)
        y = y.flatten()  # (b t,)
        # Perplexity is that of cross-entropy, whatever loss is trained.
        if stage != "train" and not self._is_plain_cross_entropy:
            count = (y != IGNORE_INDEX).sum()
            self.log_mean(stage, count, cross_entropy=F.cross_entropy(logits, y, ignore_index=IGNORE_INDEX))
        assert self.loss is not None
        if getattr(self.loss, "ignore_index", None) != IGNORE_INDEX:
            valid = y != IGNORE_INDEX
            logits = logits[valid]
            y = y[valid]
        return self.loss(logits, y)

    def num_items(self, batch: Any) -> Tensor:
        """Return the number of tokens over which the loss is a mean."""
        return num_targets(self.loss, batch[1])

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        means = self._running_means[stage].compute(self.trainer)
        nats = means.get("cross_entropy", means["loss"])
        metrics = {"perplexity": nats.exp()}
        if self.bytes_per_token:
            metrics["bits_per_byte"] = nats / math.log(2) / self.bytes_per_token
        return metrics

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return a column ``loss``: the mean over the tokens of each block, in nats."""
        x, y = batch
        logits = at_least_float32(self(x)).mT  # (b, v, t)
        losses = F.cross_entropy(logits, y, ignore_index=IGNORE_INDEX, reduction="none")  # (b, t)
        counts = (y != IGNORE_INDEX).sum(1)
        return {"loss": (losses.sum(1) / counts).tolist()}

    # Generation -------------------------------------------------------------------------------------------------------

    @property
    def context(self) -> int:
        """Context length of the network in tokens, which may exceed the blocks of the data."""
        return getattr(self.net, "block_size", self.block_size)  # type: ignore[return-value]

    def generate(
        self,
        tokens: Int[Tensor, "b t"] | Sequence[Sequence[int]],
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        eos_id: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> list[list[int]]:
        """Generate continuations of prompts; return the new token ids of each, without the end-of-text token.

        Args:
            tokens: token ids of the prompts, which may differ in length.
            max_new_tokens: maximum number of new tokens.
            temperature: divides the logits; 0 is greedy decoding. This and the next four as in :class:`SamplingConfig`.
            top_k: sample from the ``top_k`` most probable tokens.
            top_p: sample from the most probable tokens whose probabilities sum to ``top_p``.
            min_p: sample from tokens at least ``min_p`` times as probable as the most probable one.
            repetition_penalty: above 1 for less repetition.
            eos_id: the token that ends a text; None for the tokenizer's, if there is one, and ``eos_ids``.
            seed: the same seed generates the same text.
            options: ``rows``, ``cache`` and ``on_token`` of :func:`zoo.tasks.generation.generate`.
        """
        prompts = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        self._check_prompts(prompts)
        sampling = SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty)
        if self.tokenizer is not None:
            # The network's vocabulary may be padded.
            options = {"vocab_size": len(self.tokenizer), **options}
        training = self.net.training
        self.net.eval()
        try:
            return generation.generate(
                self.net,
                prompts,
                max_new_tokens,
                sampling,
                self.context,
                self._ends(eos_id),
                seed,
                **options,
            )
        finally:
            self.net.train(training)

    def _check_prompts(self, prompts: Sequence[Any]) -> None:
        for prompt in prompts:
            if isinstance(prompt, int):
                raise ValueError("generate takes several prompts, (b, t): put a single one into a list")
            for token in prompt:
                if not 0 <= token < self.vocab_size:
                    raise ValueError(f"token {token} is out of range: vocab_size={self.vocab_size}")

    def _ends(self, eos_id: int | None) -> set[int]:
        """Return the tokens that end a text.

        Args:
            eos_id: as for ``generate``.
        """
        if eos_id is not None:
            return {eos_id}
        ends = {*self.eos_ids}
        if self.tokenizer is not None and self.tokenizer.eos_id is not None:
            ends.add(self.tokenizer.eos_id)
        return ends

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the tokens of a prompt, with ``add_bos_token`` after the token with which the tokenizer begins texts.

        A tokenizer that begins texts without a special token adds none.
        """
        tokenizer = self.tokenizer
        assert tokenizer is not None
        ids = tokenizer.encode(prompt, parse_special=True)
        bos = tokenizer.bos_id
        if not self.add_bos_token or bos is None or ids[:1] == [bos]:
            return ids
        if tokenizer.encode(prompt, add_special_tokens=True)[:1] == [bos]:
            return [bos, *ids]
        return ids

    def complete(
        self,
        prompts: Sequence[str],
        stop: Sequence[str] = (),
        on_text: Callable[[int, str], None] | None = None,
        **options: Any,
    ) -> list[str]:
        """Generate continuations of texts; return the new text of each.

        Args:
            prompts: texts that are not empty. Names of special tokens in them stand for these tokens.
            stop: strings that end a text and are not part of it.
            on_text: called with the index of the prompt and each new piece of its text.
            options: options of :meth:`generate`.
        """
        if self.tokenizer is None:
            raise ValueError(f"{type(self).__name__} has no tokenizer: train it on text, or load a checkpoint that was")
        if isinstance(prompts, str) or isinstance(stop, str) or not all(stop):
            raise ValueError("prompts and stop must be lists of texts, and those of stop must not be empty")
        rows = [self.encode_prompt(prompt) for prompt in prompts]
        streams = [TextStream(self.tokenizer, row, stop) for row in rows]
        texts = ["" for _ in rows]

        def add(row: int, text: str) -> None:
            texts[row] += text
            if on_text is not None and text:
                on_text(row, text)

        def on_token(row: int, token: int) -> bool:
            add(row, streams[row].push(token))
            return streams[row].ended

        self.generate(rows, on_token=on_token, **options)
        for row, stream in enumerate(streams):
            add(row, stream.finish())
        return texts

    # Tokenizer --------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        tokenizer = getattr(data, "tokenizer", None)
        if tokenizer is not None:
            self.set_tokenizer(tokenizer)
        self.bytes_per_token = getattr(data, "bytes_per_token", None) or self.bytes_per_token

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["bytes_per_token"] = self.bytes_per_token

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.bytes_per_token = self.bytes_per_token or checkpoint.get("bytes_per_token")

    # Helpers ----------------------------------------------------------------------------------------------------------

    @property
    def _is_plain_cross_entropy(self) -> bool:
        loss = self.loss
        return type(loss) is nn.CrossEntropyLoss and loss.weight is None and not loss.label_smoothing

    def _check(self, x: Tensor, y: Tensor) -> None:
        if x.ndim != 2 or x.shape != y.shape:
            raise ValueError(
                f"a language model takes tokens and targets (b, t): got {tuple(x.shape)}, {tuple(y.shape)}"
            )
        if x.shape[1] > self.block_size:
            raise ValueError(f"blocks of {x.shape[1]} tokens are longer than the model's block_size={self.block_size}")
        # Elsewhere, reading values would wait for the device.
        if x.device.type == "cpu":
            highest = max(int(x.max()), int(y.max()))
            if highest >= self.vocab_size:
                raise ValueError(f"token {highest} is out of range: vocab_size={self.vocab_size}")
