"""Loss and metrics by hand, text that travels with the checkpoint, the picture, and the config through the CLI."""

import math

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from zoo.callbacks import AttentionMaps
from zoo.callbacks.plots.attention_maps import plot_attention
from zoo.data.text.translation import SPECIALS
from zoo.layers.decoding import Generated
from zoo.losses import FocalLoss
from zoo.models import Seq2SeqTranslator
from zoo.tasks import Translator
from zoo.text.tokenizer import Tokenizer

BOS, EOS = 2, 3
FACTS = {"tgt_vocab_size": 8, "pad_id": 0, "bos_id": BOS, "eos_id": EOS, "max_new_tokens": 8}
TOKENIZER = Tokenizer("characters", [*SPECIALS.values(), *"abcd"], SPECIALS)


def module(**kwargs) -> Seq2SeqTranslator:
    torch.manual_seed(0)
    sizes = {"dim": 16, "embed_dim": 8, "src_vocab_size": 8, "attention": "dot"}
    return Seq2SeqTranslator(**{**sizes, **FACTS, **kwargs})


def batch(*pairs: tuple[str, str]):
    src = [torch.tensor(TOKENIZER.encode(a)) for a, _ in pairs]
    whole = [torch.tensor([BOS, *TOKENIZER.encode(b), EOS]) for _, b in pairs]
    src, whole = (nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (src, whole))
    return (src, whole[:, :-1]), whole[:, 1:].masked_fill(whole[:, 1:] == 0, -100)


def know(module: Translator, tokenizer: Tokenizer) -> None:
    """Let a module know a tokenizer for source and target, as a checkpoint does."""
    module.on_load_checkpoint({"tokenizers": [tokenizer.plain()] * 2})


PAIRS = [("abc", "cba"), ("a", "a"), ("abcdab", "badcba"), ("dd", "dd")]


def trainer(folder, *callbacks, **flags) -> L.Trainer:
    flags = {"enable_checkpointing": False, "logger": False, "enable_model_summary": False, **flags}
    return L.Trainer(
        accelerator="cpu", enable_progress_bar=False, callbacks=list(callbacks), default_root_dir=folder, **flags
    )


@pytest.mark.parametrize(
    "loss", [None, nn.CrossEntropyLoss(), nn.CrossEntropyLoss(ignore_index=0), nn.CrossEntropyLoss(label_smoothing=0.1)]
)
def test_loss_is_the_mean_over_tokens_of_targets(loss, tmp_path):
    m, data = module(loss=loss), batch(*PAIRS)
    logits = m.net(*data[0])
    smooth = getattr(loss, "label_smoothing", 0.0)
    each = [
        nn.functional.cross_entropy(logits[i, t], data[1][i, t], label_smoothing=smooth)
        for i, (_, target) in enumerate(PAIRS)
        for t in range(len(target) + 1)
    ]
    assert float(m.step(data, "train").detach()) == pytest.approx(float((sum(each) / len(each)).detach()), rel=1e-5)
    assert m.num_items(data) == len(each) == 16
    right = [
        int(logits[i, t].argmax()) == int(data[1][i, t]) for i, (_, b) in enumerate(PAIRS) for t in range(len(b) + 1)
    ]
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(m, DataLoader([data], batch_size=None))
    assert float(runner.callback_metrics["train/token_accuracy"]) == pytest.approx(sum(right) / 16)


def test_other_losses_of_classes_work():
    data = batch(*PAIRS)
    plain, focal = module(), module(loss=FocalLoss(gamma=0.0))
    torch.testing.assert_close(plain.step(data, "train"), focal.step(data, "train"), rtol=1e-5, atol=1e-6)
    weight = torch.tensor([1.0, 1, 1, 3, 1, 1, 2, 1])
    weighted = module(loss=nn.CrossEntropyLoss(weight=weight))
    assert weighted.num_items(data) == float(weight[data[1][data[1] >= 0]].sum())
    with pytest.raises(ValueError, match="MSELoss cannot learn multiclass labels"):
        module(loss=nn.MSELoss())


def test_accumulation_equals_the_large_batch(tmp_path):
    """Two batches with 13 and 3 tokens of targets: each token counts the same."""
    weights = []
    for parts in ([PAIRS], [PAIRS[:1] + PAIRS[2:], PAIRS[1:2]]):
        m = module(optimizer=torch.optim.SGD, lr=0.1)
        runner = trainer(tmp_path, max_epochs=1, accumulate_grad_batches=len(parts))
        runner.fit(m, DataLoader([batch(*part) for part in parts], batch_size=None))
        weights.append([p.detach().clone() for p in m.parameters()])
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(weights[0], module().parameters(), strict=True))
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


class Says(nn.Module):
    """A network that translates as it is told."""

    def __init__(self, answers: list[list[int]]) -> None:
        super().__init__()
        self.bias, self.answers = nn.Parameter(torch.zeros(8)), answers

    def forward(self, src, tgt):
        return self.bias.expand(*tgt.shape, -1)

    def generate(self, src, bos_id, eos_id, max_new_tokens, **_):
        rows = [torch.tensor(self.answers.pop(0)) for _ in range(len(src))]
        return Generated(nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.zeros(len(src)))


def evaluated(answers, pairs, folder, stage="validate", **options) -> dict[str, float]:
    m = Translator(Says(answers), **FACTS, **options)
    know(m, TOKENIZER)
    return getattr(trainer(folder), stage)(m, DataLoader([batch(*pairs)], batch_size=None), verbose=False)[0]


def test_metrics_by_hand(tmp_path):
    from torchmetrics.functional.text import sacre_bleu_score

    targets = ["abcd", "dcba", "abab"]
    answers = [[4, 5, 6, 7, EOS], [7, 6, 5, 5, EOS, 4], [4, 5, 4, 5]]  # right, one wrong, right without an end
    values = evaluated(answers, [("a", t) for t in targets], tmp_path, "test")
    said = ["abcd", "dcbb", "abab"]
    assert values["test/exact_match"] == pytest.approx(2 / 3)
    right = [[t] for t in targets]
    assert values["test/bleu"] == pytest.approx(float(sacre_bleu_score(said, right, tokenize="char")))
    assert values["test/chrf"] == pytest.approx(0.8263888888888889), "sacrebleu's"
    assert values["test/loss"] == pytest.approx(math.log(8), rel=1e-5)
    assert 0 < values["test/bleu"] < 1


def test_nothing_is_right_that_the_vocabulary_cannot_say(tmp_path):
    """The target has an unknown token: to answer with <unk> is no translation."""
    values = evaluated([[4, 1, 6, EOS], [4, 5, EOS]], [("a", "a?c"), ("b", "ab")], tmp_path)
    assert values["val/exact_match"] == 0.5


def test_examples_are_printed_once_and_few(tmp_path, capsys):
    answers = [[4, EOS], [5, EOS], [6, EOS], [4, EOS]]
    evaluated(answers, [("a", "a"), ("b", "a"), ("c", "c"), ("d", "d")], tmp_path, examples=2)
    assert "'a' -> 'a'\n'b' -> 'b', not 'a'\n" in capsys.readouterr().out
    m = Translator(Says([[4, EOS]] * 4), **FACTS)
    loader = DataLoader([batch(("a", "a"))], batch_size=None)
    for _ in range(2):
        trainer(tmp_path).validate(m, loader, verbose=False)
    assert capsys.readouterr().out.count("->") == 1, "what has not changed is not said again"
    evaluated([[4, EOS]], [("a", "a")], tmp_path, examples=0)
    assert "->" not in capsys.readouterr().out


def test_text_travels_with_the_checkpoint(tmp_path):
    m = module().eval()
    know(m, TOKENIZER)
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(m, DataLoader([batch(*PAIRS)], batch_size=None))
    runner.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    again = Seq2SeqTranslator.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    texts = ["abc", "d", "cab?"]
    assert again.translate(texts) == m.eval().translate(texts)
    assert [again.translate([text])[0] for text in texts] == again.translate(texts)
    with pytest.raises(ValueError, match="Seq2SeqTranslator has no tokenizers yet"):
        module().translate(texts)


def test_a_checkpoint_of_other_tokens_is_refused():
    m, other = module(), Tokenizer("characters", [*SPECIALS.values(), *"dcba"], SPECIALS)
    know(m, other)
    with pytest.raises(ValueError, match="the data numbers its tokens differently"):
        m.on_load_checkpoint({"tokenizers": [TOKENIZER.plain()] * 2})
    m.on_load_checkpoint({"tokenizers": [other.plain()] * 2})


def test_predictions_are_rows_of_text():
    m, data = module(num_beams=2).eval(), batch(*PAIRS)
    know(m, TOKENIZER)
    columns = m.predict_step(data, 0)
    assert columns["source"] == [a for a, _ in PAIRS]
    assert columns["translation"] == m.translate(columns["source"])
    assert all(score < 0 for score in columns["score"])
    assert m.predict_step(((data[0][0],),), 0) == columns, "sources alone will do"
    m.tokenizers = None
    assert m.predict_step(data, 0)["source"][0] == "4 5 6", "numbers where no text is known"


def test_a_target_beyond_the_vocabulary_is_named():
    data = batch(*PAIRS)
    data[1][0, 0] = 9
    with pytest.raises(ValueError, match="target token 9 is out of range: tgt_vocab_size=8"):
        module().step(data, "train")


# Picture --------------------------------------------------------------------------------------------------------------


def test_alignments_are_the_attention_of_each_translation():
    m, data = module().eval(), batch(*PAIRS)
    know(m, TOKENIZER)
    found = m.alignments(data, 3)
    assert [names for names, _, _ in found] == [list("abc"), ["a"], list("abcdab")]
    for (source, target, weights), (text, _) in zip(found, PAIRS, strict=False):
        assert weights.shape == (len(target), len(source))
        torch.testing.assert_close(weights.sum(1), torch.ones(len(target)))
        alone = m.net.generate(torch.tensor([TOKENIZER.encode(text)]), BOS, EOS, 8).tokens
        own = m.net.attend(torch.tensor([TOKENIZER.encode(text)]), torch.cat([torch.tensor([[BOS]]), alone[:, :-1]], 1))
        torch.testing.assert_close(weights, own[0], rtol=1e-4, atol=1e-5)
        assert target == TOKENIZER.names(alone[0].tolist())


def test_the_picture_shows_weights_and_tokens(tmp_path):
    m = module()
    know(m, TOKENIZER)
    loader = DataLoader([batch(*PAIRS), batch(("d", "d"))], batch_size=None)
    trainer(tmp_path, AttentionMaps(num_samples=3)).validate(m, loader, verbose=False)
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    alignment = (["a", " ", "$"], ["b", "<eos>"], torch.tensor([[0.1, 0.2, 0.7], [0.0, 1.0, 0.0]]))
    axes = plot_attention([alignment]).axes[0]
    assert axes.images[0].get_array().tolist() == pytest.approx(alignment[2].numpy())
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "\u2423", r"\$"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "<eos>"]


def test_picture_without_attention_says_so(tmp_path):
    loader = DataLoader([batch(*PAIRS)], batch_size=None)
    with pytest.raises(ValueError, match="Seq2SeqTranslator has no attention to plot"):
        trainer(tmp_path, AttentionMaps()).validate(module(attention="none"), loader)
    with pytest.raises(ValueError, match="AttentionMaps plots translation models, and LightningModule is not one"):
        AttentionMaps().setup(trainer(tmp_path), L.LightningModule(), "fit")


# Through the command line ---------------------------------------------------------------------------------------------

SMALL = ["--data.samples", 400, "--trainer.max_epochs", 1, "--model.dim", 16, "--run_dir", "r"]


def test_the_config_fits_draws_and_translates_new_dates(zoo, here):
    code, out, err = zoo(
        "fit", "-c", "configs/seq2seq_dates.yaml", *SMALL, "--model.teacher_forcing_schedule", "linear"
    )
    assert (code, err) == (0, "")
    assert " -> " in out
    assert (here / "r/attention.png").stat().st_size > 5_000
    (here / "new.txt").write_text("5 May 2030\n\nMar 3rd '24\n")
    last = ["--ckpt_path", "r/checkpoints/last.ckpt"]
    code, out, err = zoo(
        "predict", *last, "--data.predict_file", "new.txt", "--out", "p.csv", "--model.max_new_tokens", 6
    )
    assert (code, err.count("\n")) == (0, 1), err
    assert "new.txt: 1 of 3 lines are empty and left out" in err
    rows = (here / "p.csv").read_text().splitlines()
    assert rows[0] == "row,source,translation,score"
    assert [row.split(",")[1] for row in rows[1:]] == ["5 May 2030", "Mar 3rd '24"]
    assert all(len(row.split(",")[2]) <= 6 for row in rows[1:])
    plain = torch.load("r/checkpoints/last.ckpt", weights_only=True)
    assert plain["tokenizers"] == plain["datamodule_hyper_parameters"]["tokenizers"]
    code, out, err = zoo("test", *last, "--data.seed", 9)
    assert (code, err) == (0, ""), "other dates, the same characters"
    assert "test/chrf" in out


def test_texts_of_ones_own_need_not_be_there_to_predict(zoo, here):
    for name, words in (("a.txt", "one two"), ("b.txt", "eins zwei")):
        (here / name).write_text("".join(f"{words} {i}\n" for i in range(40)))
    given = ["--model", "Seq2SeqTranslator", "--model.dim", 8, "--data", "ParallelText", "--data.source", "a.txt",
             "--data.target", "b.txt"]  # fmt: skip
    code, _, err = zoo("fit", *given, "--trainer.max_epochs", 1, "--run_dir", "r")
    assert code == 0, err
    for name in ("a.txt", "b.txt"):
        (here / name).unlink()
    (here / "new.txt").write_text("two one 7\nthree\n")
    code, _, err = zoo(
        "predict", "--ckpt_path", "r/checkpoints/last.ckpt", "--data.predict_file", "new.txt", "--out", "p.csv"
    )
    assert code == 0, err
    assert len((here / "p.csv").read_text().splitlines()) == 3
    code, _, err = zoo("fit", *given)
    assert (code, err) == (2, "zoo: error: no file a.txt\n")


@pytest.mark.slow
def test_resume_is_exact_while_the_teacher_fades(zoo):
    options = ["--data.samples", 300, "--model.teacher_forcing_schedule", "inverse_sigmoid", "--model.dropout", 0.2]
    code, out, err = zoo("verify", "resume", "-c", "configs/seq2seq_dates.yaml", *options, "--model.dim", 16)
    assert code == 0, out + err
