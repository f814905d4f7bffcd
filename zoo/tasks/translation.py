"""Translation: one sequence of tokens from another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.text import CHRFScore, SacreBLEUScore

from zoo.layers.decoding import Generated
from zoo.losses.adapt import adapt_loss
from zoo.tasks.base import Task, inputs_of, require
from zoo.tasks.tokenized import IGNORE_INDEX, num_targets
from zoo.text.tokenizer import Tokenizer
from zoo.text.vocabulary import UNKNOWN


class Translator(Task):
    """Train any network that writes a sequence of tokens from another.

    A batch is ``((src, tgt), labels)``: tokens ``(b, s)`` of the source and ``(b, t)`` of the target from its
    begin-of-sequence on, padded behind their ends; ``labels`` ``(b, t)`` are the target one token on, up to its
    end-of-sequence, and -100 (the loss's ``ignore_index``) in the padding. The network returns logits ``(b, t, v)``
    and has ``generate``, as ``Seq2Seq`` does. The loss is the mean over all tokens of targets. Logs ``loss`` and
    ``token_accuracy`` (given the target so far). In validation and test the network translates by itself:
    ``exact_match`` is the share of targets it hits to the letter, ``bleu`` is that of sacrebleu (of characters, where
    tokens are characters), and the test has ``chrf`` too, which takes long. Of data that knows no text, the numbers of
    tokens are compared.

    Args:
        tgt_vocab_size: number of tokens of the target; null takes it from the data.
        pad_id: the padding token; null takes it from the data.
        bos_id: the token that targets begin with; null takes it from the data.
        eos_id: the token that ends them; null takes it from the data.
        max_new_tokens: how many tokens a translation has at most, its end included; null takes it from the data.
        num_beams: width of the beam that searches for a translation; 1 takes the most probable token at each step.
        length_penalty: exponent of the length by which a translation's log-probability is divided; above 0 prefers
            long ones. Matters with ``num_beams`` above 1.
        early_stopping: when a beam is done: true, when ``num_beams`` translations have ended; false, also when no
            other is as probable; ``never``, only when none can become so.
        examples: translations printed after a validation or test, where they changed; 0 for none.
    """

    monitor, monitor_mode = "val/bleu", "max"

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
            least = "max_new_tokens and num_beams start at 1, examples at 0"
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
        self.tokenizers: tuple[Tokenizer, ...] | None = None  # of source and target; from the data, or a checkpoint
        self.metrics = nn.ModuleDict()
        self._set_tokenizers(None)
        self._printed, self._last_printed = list[str](), ""

    # What it says -----------------------------------------------------------------------------------------------------

    def step(self, batch: Any, stage: str) -> Tensor:
        inputs, labels = batch
        logits, kept = self(*inputs), labels != IGNORE_INDEX
        size = self.tgt_vocab_size
        if labels.device.type == "cpu" and int(labels.max()) >= size:  # elsewhere looking at values waits for it
            raise ValueError(f"target token {int(labels.max())} is out of range: tgt_vocab_size={size}")
        hits, n = ((logits.detach().argmax(2) == labels) & kept).sum(), kept.sum()
        self.log_mean(stage, n, token_accuracy=hits / n)
        if stage != "train":
            self._update_metrics(inputs, labels, stage)
        assert self.loss is not None
        if getattr(self.loss, "ignore_index", None) != IGNORE_INDEX:
            return self.loss(logits[kept], labels[kept])
        return self.loss(logits.flatten(0, 1), labels.flatten())

    def num_items(self, batch: Any) -> Tensor:
        """Over how many tokens of targets the mean is taken."""
        return num_targets(self.loss, batch[1])

    def generate(self, src: Int[Tensor, "b s"], *more: Tensor) -> Generated:
        """Translate a batch of sources: tokens ``(b, t)`` with a score each."""
        lengths = {"src_lengths": more[0]} if more else {}
        return self.net.generate(
            src, self.bos_id, self.eos_id, self.max_new_tokens, **self.generation_options, **lengths
        )  # type: ignore[operator]

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Translate texts, in eval mode."""
        if self.tokenizers is None:
            raise ValueError(
                f"{type(self).__name__} knows no text yet: train it on data that does, or load a checkpoint"
            )
        source = self.tokenizers[0]
        rows = [torch.tensor(source.encode(text) or [source.unknown_id], device=self.device) for text in texts]
        src = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_id)
        return [self._decode(row) for row in self.generate(src).tokens]

    @torch.no_grad()
    def alignments(self, batch: Any, samples: int) -> list[tuple[list[str], list[str], Float[Tensor, "t s"]]]:
        """Return for the first sources of a batch: their tokens, those of their translations, and the attention.

        Args:
            batch: as in training.
            samples: how many at most.
        """
        src = inputs_of(batch)[0][:samples]
        tokens = self.generate(src).tokens
        tgt = torch.cat([tokens.new_full((len(tokens), 1), self.bos_id), tokens[:, :-1]], 1)
        weights = self.net.attend(src, tgt)  # type: ignore[operator]
        if weights is None:
            raise ValueError(f"{type(self).__name__} has no attention to draw")
        found = []
        for source, target, weight in zip(src.tolist(), tokens.tolist(), weights.float().cpu(), strict=True):
            s, t = len(self._strip(source)), len(self._strip(target, end=True))
            names = [self._names(part, side) for side, part in enumerate((source[:s], target[:t]))]
            found.append((names[0], names[1], weight[:t, :s]))
        return found

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return columns: ``source``, ``translation`` and ``score``, the log-probability a token (or as penalised)."""
        src = inputs_of(batch)[0]
        found = self.generate(src)
        texts = [self._decode(row, 0) for row in src], [self._decode(row) for row in found.tokens]
        return {"source": texts[0], "translation": texts[1], "score": found.scores.tolist()}

    # Judging ----------------------------------------------------------------------------------------------------------

    def _update_metrics(self, inputs: Any, labels: Tensor, stage: str) -> None:
        found = [self._decode(row) for row in self.generate(inputs[0]).tokens]
        # What the vocabulary cannot say is in no translation, and no translation is right that leaves it out.
        right = [self._decode(row, unknown=UNKNOWN) for row in labels]
        self.metrics[stage].update(found, [[text] for text in right])  # type: ignore[operator]
        exact = torch.tensor([a == b for a, b in zip(found, right, strict=True)], device=labels.device)
        self.log_mean(stage, len(right), exact_match=exact.float().mean())
        for row, text, true in zip(inputs[0], found, right, strict=True):
            if len(self._printed) >= self.examples:
                break
            self._printed.append(f"{self._decode(row, 0)!r} -> {text!r}" + ("" if text == true else f", not {true!r}"))

    def reset_metrics(self, stage: str) -> None:
        super().reset_metrics(stage)
        self.metrics[stage].reset()  # type: ignore[operator]
        self._printed.clear()

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        text = "\n".join(self._printed)
        if text != self._last_printed and self.trainer.is_global_zero and not self.trainer.sanity_checking:
            self._last_printed, bar = text, self.trainer.progress_bar_callback
            (print if bar is None else bar.print)(text)
        return self.metrics[stage].compute()  # type: ignore[operator]

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
        bleu = SacreBLEUScore(tokenize=unit)
        self.metrics["val"] = MetricCollection({"bleu": bleu})
        self.metrics["test"] = MetricCollection({"bleu": bleu.clone(), "chrf": CHRFScore(n_word_order=0)})

    def _strip(self, numbers: list[int], end: bool = False) -> list[int]:
        """A row's tokens, without padding and what follows the end, which belongs to them or not."""
        stops = [i for i, number in enumerate(numbers) if number in (self.eos_id, self.pad_id, IGNORE_INDEX)]
        if not stops:
            return numbers
        return numbers[: stops[0] + (end and numbers[stops[0]] == self.eos_id)]

    def _decode(self, row: Tensor, side: int = 1, unknown: str = "") -> str:
        own = self._strip(row.tolist())
        return " ".join(map(str, own)) if self.tokenizers is None else self.tokenizers[side].decode(own, unknown)

    def _names(self, numbers: list[int], side: int) -> list[str]:
        return [str(i) for i in numbers] if self.tokenizers is None else self.tokenizers[side].names(numbers)
