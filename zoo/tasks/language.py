"""Language modelling: the next token of a text."""

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
    """Train any network that maps tokens to logits of the token after each of them.

    A batch is ``(x, y)``, tokens ``(b, t)`` each: ``y`` is ``x`` one token on, and -100 (the loss's ``ignore_index``)
    where no token is asked for. The network returns logits ``(b, t, v)``. The loss is the mean over all tokens. Logs
    ``loss``, and in validation and test ``perplexity`` and ``bits_per_byte`` (of the text in UTF-8, where the data says
    how many bytes a token has).

    Args:
        vocab_size: number of tokens; null takes it from the data.
        block_size: tokens that the network sees at most; null takes it from the data.
    """

    eos_ids: Collection[int] = ()  # tokens that end a text besides the tokenizer's, of published weights
    add_bos_token = False  # whether a prompt begins as the tokenizer wants it, which published weights expect

    def __init__(
        self, net: nn.Module, vocab_size: int | None = None, block_size: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(net=net, **kwargs)
        self.vocab_size, self.block_size = require(self, vocab_size=vocab_size, block_size=block_size)
        self.loss = adapt_loss(self.loss or nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX), "multiclass", vocab_size)
        self.bytes_per_token: float | None = None

    def forward(self, tokens: Int[Tensor, "b t"], **kwargs: Any) -> Float[Tensor, "b t v"]:
        return self.net(tokens, **kwargs)

    # What it says -----------------------------------------------------------------------------------------------------

    def step(self, batch: Any, stage: str) -> Tensor:
        x, y = batch
        self._check(x, y)
        logits, y = at_least_float32(self(x)).flatten(0, 1), y.flatten()
        if stage != "train" and not self._is_plain_cross_entropy:  # perplexity has its own meaning, whatever is trained
            n = (y != IGNORE_INDEX).sum()
            self.log_mean(stage, n, cross_entropy=F.cross_entropy(logits, y, ignore_index=IGNORE_INDEX))
        assert self.loss is not None
        if getattr(self.loss, "ignore_index", None) != IGNORE_INDEX:
            logits, y = logits[y != IGNORE_INDEX], y[y != IGNORE_INDEX]
        return self.loss(logits, y)

    def num_items(self, batch: Any) -> Tensor:
        """Over how many tokens the mean is taken."""
        return num_targets(self.loss, batch[1])

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        means = self._running_means[stage].compute(self.trainer)
        nats = means.get("cross_entropy", means["loss"])
        found = {"perplexity": nats.exp()}
        if self.bytes_per_token:
            found["bits_per_byte"] = nats / math.log(2) / self.bytes_per_token
        return found

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return a column ``loss``: of each block, the mean over its tokens in nats."""
        x, y = batch
        losses = F.cross_entropy(at_least_float32(self(x)).mT, y, ignore_index=IGNORE_INDEX, reduction="none")
        return {"loss": (losses.sum(1) / (y != IGNORE_INDEX).sum(1)).tolist()}

    # Writing ----------------------------------------------------------------------------------------------------------

    @property
    def context(self) -> int:
        """Tokens that the network sees at most, which may be more than a block of the data."""
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
        """Write on from prompts; return the new tokens of each, without the end-of-text.

        Args:
            tokens: of the prompts, which need not be of one length.
            max_new_tokens: how many at most.
            temperature: 0 takes the most probable token; this and what follows as in :class:`Sampling`.
            top_k: draw from so many tokens.
            top_p: draw from the most probable ones that together have this probability.
            min_p: draw from those at least this share as probable as the first.
            repetition_penalty: above 1 for less repetition.
            eos_id: the token that ends a text; null takes the tokenizer's, where there is one, and ``eos_ids``.
            seed: the same text for the same seed.
            options: ``rows``, ``cache`` and ``on_token`` of :func:`zoo.tasks.generation.generate`.
        """
        prompts = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        if any(isinstance(prompt, int) for prompt in prompts):
            raise ValueError("generate takes several prompts, (b, t): put one of them into a list")
        if strange := [i for prompt in prompts for i in prompt if not 0 <= i < self.vocab_size]:
            raise ValueError(f"token {strange[0]} is out of range: vocab_size={self.vocab_size}")
        sampling = SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty)
        ends = {*self.eos_ids} if eos_id is None else {eos_id}
        if (tokenizer := self.tokenizer) is not None:
            ends |= {tokenizer.eos_id} if eos_id is None and tokenizer.eos_id is not None else set()
            options = {"vocab_size": len(tokenizer), **options}
        training = self.net.training
        self.net.eval()
        try:
            return generation.generate(self.net, prompts, max_new_tokens, sampling, self.context, ends, seed, **options)
        finally:
            self.net.train(training)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Tokens of a prompt; with ``add_bos_token`` behind the one that the tokenizer sets before a text, if it
        does."""
        tokenizer = self.tokenizer
        assert tokenizer is not None
        ids, bos = tokenizer.encode(prompt, parse_special=True), [tokenizer.bos_id]
        prepend_bos = (
            self.add_bos_token and ids[:1] != bos and tokenizer.encode(prompt, add_special_tokens=True)[:1] == bos
        )
        return bos + ids if prepend_bos else ids  # type: ignore[return-value]

    def complete(
        self,
        prompts: Sequence[str],
        stop: Sequence[str] = (),
        on_text: Callable[[int, str], None] | None = None,
        **options: Any,
    ) -> list[str]:
        """Write on from texts; return what is new of each.

        Args:
            prompts: not empty. Names of special tokens in them mean these.
            stop: strings that end a text and do not belong to it.
            on_text: told of each piece of text as it comes, with the number of its prompt.
            options: of :meth:`generate`.
        """
        if self.tokenizer is None:
            raise ValueError(f"{type(self).__name__} has no tokenizer: train it on text, or load a checkpoint that was")
        if isinstance(prompts, str) or isinstance(stop, str) or not all(stop):
            raise ValueError("prompts and stop are lists of texts, those of stop not empty")
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

    # Text -------------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if (tokenizer := getattr(data, "tokenizer", None)) is not None:
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
        if x.device.type == "cpu":  # elsewhere looking at values waits for it
            highest = max(int(x.max()), int(y.max()))
            if highest >= self.vocab_size:
                raise ValueError(f"token {highest} is out of range: vocab_size={self.vocab_size}")
