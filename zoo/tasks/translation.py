"""Sequence-to-sequence translation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics import MetricCollection

from zoo.layers.decoding import Generated
from zoo.losses.adapt import adapt_loss
from zoo.metrics.accumulation import defined
from zoo.metrics.translation import CharacterF, SacreBLEU
from zoo.tasks.base import Task, inputs_of, require
from zoo.tasks.tokenized import IGNORE_INDEX, num_targets
from zoo.text.tokenizer import Tokenizer
from zoo.text.vocabulary import UNKNOWN


class Translator(Task):
    """Sequence-to-sequence translator: any network that generates a target sequence from a source sequence.

    A batch is ``((src, tgt), labels)``: token ids of the source ``(b, s)`` and of the target ``(b, t)`` with its
    begin-of-sequence, right-padded; ``labels`` ``(b, t)`` are the target shifted by one token, with its
    end-of-sequence, and -100 (the loss's ``ignore_index``) in the padding. The network returns logits ``(b, t, v)`` and
    has ``generate``, as ``Seq2Seq`` does. The loss is the mean over all target tokens. Logs ``loss`` and
    ``token_accuracy`` (teacher forcing). In validation and test the network generates translations: ``exact_match`` is
    the fraction that equals the target, ``bleu`` is the corpus BLEU of sacrebleu (of characters for character tokens),
    smoothed as there, and the test adds ``chrf``, its chrF2; both from 0 to 1. Data without texts is compared by
    token ids.

    Args:
        tgt_vocab_size: vocabulary size of the target; null takes it from the data.
        pad_id: id of the padding token; null takes it from the data.
        bos_id: id of the begin-of-sequence token; null takes it from the data.
        eos_id: id of the end-of-sequence token; null takes it from the data.
        max_new_tokens: maximum length of a translation, its end-of-sequence included; null takes it from the data.
        num_beams: beam width; 1 is greedy decoding.
        length_penalty: exponent of the length that divides a translation's log-probability; above 0 prefers longer
            translations. Used with ``num_beams`` above 1.
        early_stopping: when beam search stops: true, once ``num_beams`` translations have ended; false, once no running
            one is likely to become better; ``never``, once none can become better.
        examples: number of translations printed after a validation or test, if they changed; 0 for none.
    """

    monitor = "val/bleu"
    monitor_mode = "max"

    def __init__(
        self,
        net: nn.Module,
        tgt_vocab_size: int | None = None,
        pad_id: int | None = None,
        bos_id: int | None = None,
        eos_id: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
        examples: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(net=net, **kwargs)
        self.pad_id, self.bos_id, self.eos_id = require(self, pad_id=pad_id, bos_id=bos_id, eos_id=eos_id)
        self.tgt_vocab_size, self.max_new_tokens = require(
            self, tgt_vocab_size=tgt_vocab_size, max_new_tokens=max_new_tokens
        )
        if self.max_new_tokens < 1 or num_beams < 1 or examples < 0:
            least = "max_new_tokens and num_beams must be at least 1, examples at least 0"
            raise ValueError(f"{least}: got {max_new_tokens=}, {num_beams=}, {examples=}")
        self.generation_options = {
            "num_beams": num_beams,
            "length_penalty": length_penalty,
            "early_stopping": early_stopping,
        }
        self.examples = examples
        self.loss = adapt_loss(
            self.loss or nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX), "multiclass", tgt_vocab_size
        )
        # Of source and target, from the data or a checkpoint.
        self.tokenizers: tuple[Tokenizer, ...] | None = None
        self.metrics = nn.ModuleDict()
        self._set_tokenizers(None)
        self._examples: list[str] = []
        self._last_printed = ""

    # Steps ------------------------------------------------------------------------------------------------------------

    def step(self, batch: Any, stage: str) -> Tensor:
        inputs, labels = batch
        logits = self(*inputs)  # (b, t, v)
        kept = labels != IGNORE_INDEX
        size = self.tgt_vocab_size
        # Only on a CPU: elsewhere reading values waits for the device.
        if labels.device.type == "cpu" and int(labels.max()) >= size:
            raise ValueError(f"target token {int(labels.max())} is out of range: tgt_vocab_size={size}")
        hits = ((logits.detach().argmax(2) == labels) & kept).sum()
        n = kept.sum()
        self.log_mean(stage, n, token_accuracy=hits / n)
        if stage != "train":
            self._update_metrics(inputs, labels, stage)
        assert self.loss is not None
        if getattr(self.loss, "ignore_index", None) != IGNORE_INDEX:
            return self.loss(logits[kept], labels[kept])
        return self.loss(logits.flatten(0, 1), labels.flatten())

    def num_items(self, batch: Any) -> Tensor:
        """Return the number of target tokens."""
        return num_targets(self.loss, batch[1])

    def generate(self, src: Int[Tensor, "b s"], *more: Tensor) -> Generated:
        """Translate a batch of sources; return token ids ``(b, t)`` and scores ``(b,)``."""
        lengths = {"src_lengths": more[0]} if more else {}
        return self.net.generate(
            src, self.bos_id, self.eos_id, self.max_new_tokens, **self.generation_options, **lengths
        )  # type: ignore[operator]

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Return translations of texts; the module has to be in eval mode."""
        if self.tokenizers is None:
            raise ValueError(f"{type(self).__name__} has no tokenizers yet: train it on texts, or load a checkpoint")
        source = self.tokenizers[0]
        rows = []
        for text in texts:
            ids = source.encode(text) or [source.unknown_id]
            rows.append(torch.tensor(ids, device=self.device))
        src = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_id)
        return [self._decode(row) for row in self.generate(src).tokens]

    @torch.no_grad()
    def alignments(self, batch: Any, samples: int) -> list[tuple[list[str], list[str], Float[Tensor, "t s"]]]:
        """Return source tokens, translated tokens and attention weights of the first samples of a batch.

        Args:
            batch: a batch as in training.
            samples: maximum number of samples.
        """
        src = inputs_of(batch)[0][:samples]
        tokens = self.generate(src).tokens
        tgt = torch.cat([tokens.new_full((len(tokens), 1), self.bos_id), tokens[:, :-1]], 1)
        weights = self.net.attend(src, tgt)  # type: ignore[operator]
        if weights is None:
            raise ValueError(f"{type(self).__name__} has no attention to plot")
        alignments = []
        for source, target, weight in zip(src.tolist(), tokens.tolist(), weights.float().cpu(), strict=True):
            source = self._strip(source)
            target = self._strip(target, end=True)
            weight = weight[: len(target), : len(source)]
            alignments.append((self._names(source, 0), self._names(target, 1), weight))
        return alignments

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return columns ``source``, ``translation`` and ``score``: a length-normalized log-probability."""
        src = inputs_of(batch)[0]
        generated = self.generate(src)
        return {
            "source": [self._decode(row, 0) for row in src],
            "translation": [self._decode(row) for row in generated.tokens],
            "score": generated.scores.tolist(),
        }

    # Metrics ----------------------------------------------------------------------------------------------------------

    def _update_metrics(self, inputs: Any, labels: Tensor, stage: str) -> None:
        translations = [self._decode(row) for row in self.generate(inputs[0]).tokens]
        # Unknown tokens are never generated, so a translation of a target with one is never an exact match.
        targets = [self._decode(row, unknown=UNKNOWN) for row in labels]
        self.metrics[stage].update(translations, [[text] for text in targets])  # type: ignore[operator]
        matches = [text == target for text, target in zip(translations, targets, strict=True)]
        exact = torch.tensor(matches, device=labels.device)
        self.log_mean(stage, len(targets), exact_match=exact.float().mean())
        for row, text, target in zip(inputs[0], translations, targets, strict=True):
            if len(self._examples) >= self.examples:
                break
            example = f"{self._decode(row, 0)!r} -> {text!r}"
            if text != target:
                example += f", not {target!r}"
            self._examples.append(example)

    def reset_metrics(self, stage: str) -> None:
        super().reset_metrics(stage)
        self.metrics[stage].reset()  # type: ignore[operator]
        self._examples.clear()

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        self._print_examples()
        return defined(self.metrics[stage].compute())  # type: ignore[operator]

    def _print_examples(self) -> None:
        """Print the examples on the main process, unless they are those printed last."""
        text = "\n".join(self._examples)
        if text == self._last_printed or not self.trainer.is_global_zero or self.trainer.sanity_checking:
            return
        self._last_printed = text
        progress_bar = self.trainer.progress_bar_callback
        if progress_bar is None:
            print(text)
        else:
            progress_bar.print(text)

    # Text -------------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        tokenizers = getattr(getattr(self.trainer, "datamodule", None), "tokenizers", None)
        if tokenizers is not None:
            self._set_tokenizers(tokenizers)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.tokenizers is not None:
            checkpoint["tokenizers"] = [tokenizer.plain() for tokenizer in self.tokenizers]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if plain := checkpoint.get("tokenizers"):
            saved = tuple(Tokenizer.from_plain(tokenizer) for tokenizer in plain)
            if self.tokenizers is not None and self.tokenizers != saved:
                raise ValueError(
                    "the data numbers its tokens differently from those that the checkpoint was trained on"
                )
            self._set_tokenizers(saved)

    def _set_tokenizers(self, tokenizers: tuple[Tokenizer, ...] | None) -> None:
        self.tokenizers = tokenizers
        unit = "char" if tokenizers is not None and tokenizers[1].level == "characters" else "13a"
        self.metrics["val"] = MetricCollection({"bleu": SacreBLEU(tokenize=unit)})
        self.metrics["test"] = MetricCollection(
            {"bleu": SacreBLEU(tokenize=unit), "chrf": CharacterF()},
            compute_groups=False,
        )

    def _strip(self, numbers: list[int], end: bool = False) -> list[int]:
        """Return token ids up to the end-of-sequence or padding; ``end`` keeps the end-of-sequence."""
        for i, number in enumerate(numbers):
            if number == self.eos_id:
                return numbers[: i + 1] if end else numbers[:i]
            if number in (self.pad_id, IGNORE_INDEX):
                return numbers[:i]
        return numbers

    def _decode(self, row: Tensor, side: int = 1, unknown: str = "") -> str:
        ids = self._strip(row.tolist())
        if self.tokenizers is None:
            return " ".join(map(str, ids))
        return self.tokenizers[side].decode(ids, unknown)

    def _names(self, numbers: list[int], side: int) -> list[str]:
        if self.tokenizers is None:
            return [str(i) for i in numbers]
        return self.tokenizers[side].names(numbers)
