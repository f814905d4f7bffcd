"""Masking: how much of what is hidden, when it changes, and that loss and perplexity are those of hidden tokens."""

from __future__ import annotations

import math

import lightning as L
import pytest
import torch

from zoo.data import MaskedText
from zoo.data.text.masked_text import FIRST, FURTHER, SPECIAL, mask_tokens
from zoo.models import BERTMaskedLM

MASK, ORDINARY = 1, torch.arange(5, 105)


def texts(rows: int = 400, length: int = 250) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, words of one to three pieces, and a special token at both ends."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(5, 105, (rows, length), generator=generator)
    kinds = torch.where(torch.rand(rows, length, generator=generator) < 0.6, FIRST, FURTHER)
    kinds[:, 1] = FIRST
    kinds[:, 0] = kinds[:, -1] = SPECIAL
    return x, kinds


def masked(**kwargs) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    x, kinds = texts()
    hidden, y = mask_tokens(x, kinds, torch.rand(3, *x.shape), MASK, ORDINARY, **kwargs)
    return x, kinds, hidden, y


@pytest.mark.parametrize("whole_word_mask", [False, True])
def test_shares_are_those_of_the_paper(whole_word_mask):
    """Within four standard deviations of 100,000 tokens."""
    x, kinds, hidden, y = masked(whole_word_mask=whole_word_mask)
    chosen = y >= 0
    n = int((kinds != SPECIAL).sum())

    def near(count, of, share, spread=1.0):
        assert abs(int(count) / of - share) < 4 * spread * math.sqrt(share * (1 - share) / of)

    near(chosen.sum(), n, 0.15, spread=2.0 if whole_word_mask else 1.0)  # pieces of a word come and go together
    of = int(chosen.sum())
    near((hidden[chosen] == MASK).sum(), of, 0.8)
    near(((hidden != MASK) & (hidden != x) & chosen).sum(), of, 0.1 * 0.99)  # one in a hundred draws itself
    near(((hidden == x) & chosen).sum(), of, 0.1 + 0.1 / 100)
    others = hidden[chosen & (hidden != MASK) & (hidden != x)]
    counts = torch.bincount(others, minlength=105)[5:].float()
    assert counts.min() > 0
    assert counts.std() < 1.3 * counts.mean().sqrt()


def test_only_chosen_tokens_of_the_text_change():
    x, kinds, hidden, y = masked()
    assert (y[kinds == SPECIAL] == -100).all()
    assert torch.equal(hidden[y < 0], x[y < 0])
    assert torch.equal(y[y >= 0], x[y >= 0])


def test_whole_words_are_hidden_whole():
    _, kinds, _, y = masked(whole_word_mask=True)
    further = kinds == FURTHER
    assert torch.equal((y >= 0)[further], (y >= 0).roll(1, 1)[further]), "a piece goes with the piece before it"
    _, _, _, y = masked()
    assert not torch.equal((y >= 0)[further], (y >= 0).roll(1, 1)[further])


def test_every_text_has_something_to_guess():
    kinds = torch.tensor([[SPECIAL, FIRST, FIRST, SPECIAL]]).expand(500, 4)
    torch.manual_seed(0)
    _, y = mask_tokens(torch.full((500, 4), 7), kinds, torch.rand(3, 500, 4), MASK, ORDINARY)
    assert ((y >= 0).sum(1) >= 1).all()
    assert (y[:, [0, 3]] == -100).all()


def batches(epoch: int, **kwargs) -> list:
    data = MaskedText(vocab_size=300, batch_size=128, **kwargs)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_masks_follow_from_seed_and_epoch(monkeypatch):
    first, again, second = batches(0), batches(0), batches(1)
    assert all(torch.equal(a[0][0], b[0][0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert sum(int((b[1] >= 0).sum()) for b in first) != sum(int((b[1] >= 0).sum()) for b in second)
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert not all(a[1].shape == b[1].shape and torch.equal(a[1], b[1]) for a, b in zip(first, batches(0), strict=True))


def test_validation_hides_the_same_tokens_whatever_the_batches():
    found = []
    for size in (7, 50):
        data = MaskedText(vocab_size=300, eval_batch_size=size)
        rows = {}
        for (x, lengths), y in data.val_dataloader():
            for row, length, target in zip(x, lengths, y, strict=True):
                rows[len(rows)] = (row[:length].tolist(), target[:length].tolist())
                assert (target[length:] == -100).all()
                assert (row[length:] == data.pad_id).all()
        found.append(rows)
    assert found[0] == found[1]


def module(vocab_size: int = 300, **kwargs) -> BERTMaskedLM:
    torch.manual_seed(0)
    return BERTMaskedLM(
        dim=32, depth=2, heads=2, max_length=128, dropout=0.0, vocab_size=vocab_size, pad_id=0, **kwargs
    )


def trainer(**kwargs) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(accelerator="cpu", **quiet, **kwargs)


def test_untrained_perplexity_is_the_size_of_the_vocabulary():
    (metrics,) = trainer().validate(module(), datamodule=MaskedText(vocab_size=300), verbose=False)
    assert metrics["val/perplexity"] == pytest.approx(300, rel=0.05)
    assert metrics["val/perplexity"] == pytest.approx(math.exp(metrics["val/loss"]), rel=1e-5)
    assert metrics["val/accuracy"] < 0.05
    assert metrics.keys() == {"val/loss", "val/accuracy", "val/perplexity"}


def test_accumulated_batches_equal_the_big_one():
    """Texts have different numbers of hidden tokens; every one of them counts the same."""
    found = []
    for size, windows in ((64, 1), (16, 4)):
        data = MaskedText(vocab_size=300, batch_size=size, bucket_by_length=False)
        data.datasets["train"].seed = 3  # the same tokens hidden, however they come in batches
        run = trainer(max_steps=3, accumulate_grad_batches=windows, precision="64-true", limit_val_batches=0)
        net = module(optimizer=torch.optim.SGD, lr=0.5)
        run.fit(net, datamodule=data)
        found.append(net.state_dict())
    assert max(float((found[0][k] - found[1][k]).abs().max()) for k in found[0]) < 1e-12
    start = module().double().state_dict()
    assert max(float((found[0][k] - start[k]).abs().max()) for k in start) > 1e-3


def test_head_sees_hidden_tokens_only():
    net = module().eval().net
    x, lengths = torch.randint(5, 300, (3, 9)), torch.tensor([9, 4, 6])
    chosen = (torch.rand(3, 9) < 0.4) & (torch.arange(9) < lengths.view(-1, 1))
    assert torch.allclose(net(x, lengths, positions=chosen), net(x, lengths)[chosen], atol=1e-6)


def test_files_and_mistakes(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text(
        "".join(f"the cat number {i} sat on the mat\n" for i in range(40)) + "\nthe cat number 1 sat on the mat\n"
    )
    data = MaskedText(path=str(file), vocab_size=60)
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [33, 4, 4], "one occurs twice"
    for kwargs, said in (
        ({"path": str(tmp_path / "none.txt")}, "no file or folder"),
        ({"mlm_probability": 1.5}, "mlm_probability must be a fraction"),
        ({"max_length": 2}, "max_length must be 3 or more"),
        ({"tokenizer": "bpe"}, "has no mask or no padding token"),
        ({"tokenizer": "words"}, "has no mask or no padding token"),
    ):
        with pytest.raises(ValueError, match=said):
            len(MaskedText(**{"path": str(file), **kwargs}).tokenizer)
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="2 texts are too few"):
        len(MaskedText(path=str(tmp_path / "few.txt")).tokenizer)
