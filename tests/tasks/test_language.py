"""The language model's loss, averages and text, with a GPT small enough to be trained here."""

import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from zoo.data import PythonDocs, TextCorpus
from zoo.losses import FocalLoss
from zoo.models import GPT
from zoo.tasks import LanguageModel
from zoo.text.tokenizer import Tokenizer

V, BLOCK = 13, 8


def model(loss=None, **kwargs):
    torch.manual_seed(0)
    return LanguageModel(GPT(V, BLOCK, dim=16, depth=1, heads=2), vocab_size=V, block_size=BLOCK, loss=loss, **kwargs)


def batch(n=6, seed=0):
    ids = torch.randint(V, (n, BLOCK + 1), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1].clone(), ids[:, 1:].clone()


def test_an_untrained_model_knows_nothing():
    x, y = batch(200)
    assert model().step((x, y), "train").item() == pytest.approx(math.log(V), abs=0.02)


def test_loss_is_the_mean_over_tokens():
    module, (x, y) = model(), batch()
    expected = F.cross_entropy(module.net(x).flatten(0, 1), y.flatten())
    torch.testing.assert_close(module.step((x, y), "train"), expected)
    assert module.num_items((x, y)) == y.numel()


@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, V)), FocalLoss(2.0)])
def test_ignored_tokens_count_for_nothing(loss):
    module, (x, y) = model(loss), batch()
    y[2:, 3:] = -100
    kept = y != -100
    torch.testing.assert_close(module.step((x, y), "train"), module.loss(module.net(x)[kept], y[kept]))
    weight = None if loss is None else getattr(loss, "weight", None)
    assert module.num_items((x, y)) == pytest.approx(float(kept.sum() if weight is None else weight[y[kept]].sum()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_half_precision_are_judged_in_float32(dtype):
    module, pair = model().to(dtype), batch()
    loss = module.step(pair, "train")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(module.net(pair[0]).float().flatten(0, 1), pair[1].flatten()))


def test_mixed_precision_learns_what_float32_does():
    """Attention leaves it on a CPU, where torch's own is slow in half precision."""
    module, pair = model(), batch(32)
    for parameter in module.net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    gradients = []
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = module.step(pair, "train")
        module.zero_grad()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
        assert gradients[-1].dtype == torch.float32
    assert not torch.equal(*gradients), "bf16 rounds"
    assert F.cosine_similarity(*gradients, dim=0) > 0.999


class Uneven(L.LightningDataModule):
    """Batches whose blocks differ in how many tokens count."""

    def __init__(self, parts):
        super().__init__()
        x, y = batch(12)
        y[:4, 2:] = -100
        self.x, self.y, self.parts = x, y, parts

    def train_dataloader(self):
        pairs = zip(self.x.chunk(self.parts), self.y.chunk(self.parts), strict=True)
        return DataLoader(list(pairs), batch_size=None)  # type: ignore[arg-type]


def test_accumulation_equals_the_big_batch(tmp_path):
    found = []
    for parts in (1, 4):
        module = model(optimizer=torch.optim.SGD, lr=0.1).double()
        trainer = L.Trainer(
            max_epochs=2, accumulate_grad_batches=parts, logger=False, enable_checkpointing=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, datamodule=Uneven(parts))
        found.append(nn.utils.parameters_to_vector(module.parameters()).detach())
        assert trainer.callback_metrics["train/loss"] > 0
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)


def corpus(folder, text, name="a.txt", **kwargs):
    (folder / name).write_text(text, encoding="utf-8")
    return TextCorpus(str(folder / name), block_size=BLOCK, batch_size=4, **kwargs)


def validate(module, data):
    trainer = L.Trainer(
        logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    return trainer.validate(module, datamodule=data, verbose=False)[0]


@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss(label_smoothing=0.2)])
def test_perplexity_and_bits_per_byte(tmp_path, loss):
    data = corpus(tmp_path, "naïve café, “quoted” or not: été! " * 40)
    size = data.vocab_size
    module = LanguageModel(GPT(size, BLOCK, dim=16, depth=1, heads=2), vocab_size=size, block_size=BLOCK, loss=loss)
    found = validate(module, data)
    x, y = data.datasets["val"].batch(torch.arange(len(data.datasets["val"])))
    nats = F.cross_entropy(module.net(x).flatten(0, 1), y.flatten()).item()
    assert found["val/perplexity"] == pytest.approx(math.exp(nats), rel=1e-5)
    own = data.tokenizer.decode(data.datasets["val"].ids.tolist())
    per_token = len(own.encode()) / len(own)
    assert 1.1 < per_token < 1.3
    assert found["val/bits_per_byte"] == pytest.approx(nats / math.log(2) / per_token, rel=1e-3)
    assert (found["val/loss"] == pytest.approx(nats, rel=1e-5)) == (loss is None)


def checkpoint_of(module):
    saved = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(saved)
    return saved


def test_the_tokenizer_travels_with_the_checkpoint():
    module = model()
    module.tokenizer, module.bytes_per_token = Tokenizer.train("characters", ["abcdefghijklm"]), 1.5
    saved = checkpoint_of(module)
    loaded = model()
    loaded.on_load_checkpoint(saved)
    assert loaded.tokenizer.plain() == module.tokenizer.plain()
    assert loaded.tokenizer.decode([0, 12]) == module.tokenizer.decode([0, 12])
    assert loaded.bytes_per_token == 1.5
    assert loaded.complete(["abc"], max_new_tokens=5) == module.complete(["abc"], max_new_tokens=5)


def test_another_tokenizer_is_refused_on_resume():
    module, other = model(), model()
    module.tokenizer = Tokenizer.train("characters", ["abcdefghijklm"])
    other.tokenizer = Tokenizer.train("characters", ["abcdefghijklM"])
    with pytest.raises(ValueError, match="tokenizer of the data differs"):
        other.on_load_checkpoint(checkpoint_of(module))


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ((torch.zeros(2, 9, dtype=torch.long),) * 2, "blocks of 9 tokens are longer than the model's block_size=8"),
        ((torch.full((2, 8), V),) * 2, f"token {V} is out of range: vocab_size={V}"),
        ((torch.zeros(2, 8, dtype=torch.long), torch.full((2, 8), V)), f"token {V} is out of range"),
        ((torch.zeros(2, 8, dtype=torch.long), torch.zeros(2, 7, dtype=torch.long)), r"\(2, 8\), \(2, 7\)"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(pair, said):
    with pytest.raises(ValueError, match=said):
        model().step(pair, "train")


def test_facts_are_needed():
    with pytest.raises(ValueError, match="needs vocab_size"):
        LanguageModel(nn.Identity(), block_size=4)


# Writing --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """A model that has seen a little text."""
    torch.manual_seed(0)
    data = PythonDocs(block_size=32, batch_size=16)
    size = data.vocab_size
    module = LanguageModel(GPT(size, 32, dim=32, depth=2, heads=2), vocab_size=size, block_size=32)
    module.tokenizer = data.tokenizer
    optimizer = torch.optim.AdamW(module.parameters(), 5e-3)
    for _ in range(60):
        loss = module.step(data.datasets["train"].batch(torch.randint(5000, (16,))), "train")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module


def test_generate_takes_a_tensor_or_lists(trained):
    ids = trained.tokenizer.encode("The statement")
    rows = trained.generate(torch.tensor([ids, ids]), 12, seed=3)
    assert rows == trained.generate([ids, ids], 12, seed=3)
    assert [len(row) for row in rows] == [12, 12]
    assert rows[0] != rows[1]
    assert trained.net.training, "left as it was"


def test_text_is_the_same_however_it_is_asked_for(trained):
    pieces = []
    prompts = ["The ", "A class is"]
    texts = trained.complete(prompts, on_text=lambda row, text: pieces.append((row, text)), max_new_tokens=60)
    assert ["".join(text for r, text in pieces if r == row) for row in (0, 1)] == texts
    ids = [trained.tokenizer.encode(prompt) for prompt in prompts]
    assert texts == [trained.tokenizer.decode(row) for row in trained.generate(ids, 60)]
    assert [len(text) for text in texts] == [60, 60]
    assert len(pieces) > 100, "told as it comes"


def test_a_text_ends_before_its_stop(trained):
    (whole,) = trained.complete(["The "], max_new_tokens=60)
    stop = whole[20:23]
    (cut,) = trained.complete(["The "], stop=["never there", stop], max_new_tokens=60)
    assert cut == whole[: whole.index(stop)]


@pytest.mark.parametrize(("prompts", "stop"), [("The", []), (["The"], "x"), (["The"], [""])])
def test_one_text_is_no_list_of_texts(trained, prompts, stop):
    with pytest.raises(ValueError, match="lists of texts"):
        trained.complete(prompts, stop, max_new_tokens=1)


def test_a_model_without_text_says_so():
    with pytest.raises(ValueError, match="has no tokenizer"):
        model().complete(["abc"])
    with pytest.raises(ValueError, match="several prompts"):
        model().generate(torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=f"token 99 is out of range: vocab_size={V}"):
        model().generate([[1, 99]])
