"""BERT and DistilBERT are transformers', with and without heads, and their files go in and out unchanged."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import Tensor

from tests.parity.compare import assert_near, randomize
from zoo.models import BERT, BERTForMaskedLM, BERTForSequenceClassification, BERTForTokenClassification
from zoo.models.bert import SIZES

SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
DISTIL = {"dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 40}
LENGTHS = torch.tensor([9, 4, 1, 7])
HEADS = {
    "Model": BERT,
    "ForMaskedLM": BERTForMaskedLM,
    "ForSequenceClassification": BERTForSequenceClassification,
    "ForTokenClassification": BERTForTokenClassification,
}
both = pytest.mark.parametrize("family", ["Bert", "DistilBert"])
heads = pytest.mark.parametrize("head", HEADS)


def config(family: str, **kwargs) -> hf.PretrainedConfig:
    sizes = SMALL if family == "Bert" else DISTIL
    given = {"vocab_size": 50, "max_position_embeddings": 12, "num_labels": 3, **sizes, **kwargs}
    return getattr(hf, f"{family}Config")(**given)


def reference(family: str, head: str = "Model", **kwargs) -> hf.PreTrainedModel:
    model = getattr(hf, family + head)(config(family, **kwargs)).eval()
    randomize(model)
    if (decoder := model.get_output_embeddings()) is not None:
        decoder.weight = model.get_input_embeddings().weight  # randomized one by one
    return model


def tokens(padded: bool = True) -> tuple[Tensor, Tensor]:
    x = torch.randint(1, 50, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < (LENGTHS if padded else torch.tensor(9)).view(-1, 1)
    return x * mask, mask.expand(4, 9).long()


def output(model: hf.PreTrainedModel, **given: Tensor) -> Tensor:
    out = model(**given)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def gradients(net: torch.nn.Module, out: Tensor) -> dict[str, Tensor]:
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (out.square() + weights * out).mean().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def assert_same(ours: BERT, theirs: hf.PreTrainedModel, padded: bool = True, types: bool = False) -> None:
    x, mask = tokens(padded)
    kinds = (torch.arange(9) > 3).long().expand(4, 9) if types else None
    more = {} if kinds is None else {"token_type_ids": kinds}
    expected = output(theirs, input_ids=x, attention_mask=mask, **more)
    out = ours(x, mask.sum(1), kinds)
    assert expected.abs().max() > 1e-2
    assert_near("output", out, expected, out.dtype)
    own, found = gradients(ours, out), gradients(theirs, expected)
    names = {e.param: e.names for e in ours.weights_format.entries(ours)}
    used = [name for name, _ in ours.named_parameters() if not (name.startswith("pooler") and type(ours) is BERT)]
    assert sorted(own) == sorted(used)
    prefix = "" if type(ours) is BERT else theirs.base_model_prefix + "."
    tied = {"cls.predictions.bias": "cls.predictions.decoder.bias"}
    for name, grad in own.items():
        parts = [found[n] if n in found else found.get(tied.get(n, n)) for n in names[name]]
        assert all(part is not None for part in parts), (name, prefix)
        assert_near(f"gradient of {name}", grad, torch.cat(parts), out.dtype)


@heads
@both
def test_outputs_and_gradients_in_padded_batches(family, head, tmp_path):
    theirs = reference(family, head)
    theirs.save_pretrained(tmp_path)
    ours = HEADS[head].from_pretrained(tmp_path)
    assert_same(ours.double(), theirs.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_pairs_of_texts_without_padding(dtype, tmp_path):
    theirs = reference("Bert", "ForSequenceClassification", hidden_act="gelu_new")
    theirs.save_pretrained(tmp_path)
    ours = BERTForSequenceClassification.from_pretrained(tmp_path)
    assert ours.arguments["activation"] == "gelu_tanh"
    assert_same(ours.to(dtype), theirs.to(dtype), padded=False, types=True)


def test_pooler_and_holes_in_the_mask(tmp_path):
    theirs = reference("Bert").double()
    theirs.float().save_pretrained(tmp_path)
    ours, (x, _) = BERT.from_pretrained(tmp_path).double(), tokens(padded=False)
    mask = (x % 3 > 0) | (torch.arange(9) == 0)
    expected = theirs.double()(input_ids=x, attention_mask=mask.long())
    states = ours(x, mask=mask)
    assert_near("states", states, expected.last_hidden_state, torch.float64)
    assert_near("pooled", ours.pooler(states), expected.pooler_output, torch.float64)
    assert not torch.allclose(states, ours(x))


@both
def test_dropout_is_where_transformers_has_it(family, tmp_path, monkeypatch):
    """Without chance in it, as the two lay tokens out in memory in different orders, and so draw other ones."""
    rates = {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.5} if family == "Bert" else {"dropout": 0.3}
    off = {"attention_probs_dropout_prob": 0.0} if family == "Bert" else {"attention_dropout": 0.0}
    theirs = reference(family, "ForSequenceClassification", **rates, **off)
    theirs.save_pretrained(tmp_path)
    ours = BERTForSequenceClassification.from_pretrained(tmp_path)
    assert ours.head.dropout.p == (0.5 if family == "Bert" else 0.2)
    monkeypatch.setattr(
        torch.nn.functional, "dropout", lambda x, p, training, inplace=False: x * (1 - p * x.sin() * training)
    )
    assert_same(ours.double().train(), theirs.double().train())


@heads
@both
def test_files_are_the_same_after_a_round_trip(family, head, tmp_path):
    reference(family, head).save_pretrained(tmp_path / "theirs")
    HEADS[head].from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "theirs" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes(), name


@heads
@both
def test_transformers_reads_what_was_never_theirs(family, head, tmp_path):
    torch.manual_seed(0)
    kind = (
        {"token_types": 0, "pooler": "relu" if head == "ForSequenceClassification" else None}
        if family == "DistilBert"
        else {}
    )
    classes = {"num_classes": 3} if "Classification" in head else {}
    ours = HEADS[head](vocab_size=50, dim=24, depth=2, heads=4, hidden=40, max_length=12, **kind, **classes).eval()
    randomize(ours)
    if classes:
        ours.class_names = ["x", "y", "z"]
    ours.save_pretrained(tmp_path)
    theirs, info = getattr(hf, family + head).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(ours.double(), theirs.double())
    if classes:
        assert theirs.config.id2label == {0: "x", 1: "y", 2: "z"}


@pytest.mark.parametrize(("size", "given"), [
    ("base", {}),
    ("large", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}),
    ("minilm-l6", {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}),
    ("distilbert", None),
])  # fmt: skip
def test_sizes_have_as_many_parameters_as_published(size, given):
    with torch.device("meta"):
        theirs = (
            hf.DistilBertForSequenceClassification(hf.DistilBertConfig())
            if given is None
            else hf.BertModel(hf.BertConfig(**given))
        )
        ours = BERTForSequenceClassification(30522, 2, **SIZES[size]) if given is None else BERT(30522, **SIZES[size])
    expected = {name: tuple(p.shape) for name, p in theirs.named_parameters()}
    names = {}
    for entry, parameter in zip(ours.weights_format.entries(ours), ours.parameters(), strict=True):
        for name in entry.names:
            names[name] = parameter.shape[0] // len(entry.names)
    assert {n: s[0] for n, s in expected.items()} == names
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())


def test_old_files(tmp_path):
    """With gamma and beta, position_ids, a copy of the tied matrix, and the head that tells which text comes next."""
    theirs = reference("Bert", "ForMaskedLM")
    theirs.save_pretrained(tmp_path)
    state = {**theirs.state_dict(), "cls.seq_relationship.weight": torch.zeros(2, 24)}
    state = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in state.items()
    }
    state["bert.embeddings.position_ids"] = torch.arange(12)[None]
    state["bert.pooler.dense.weight"], state["bert.pooler.dense.bias"] = torch.zeros(24, 24), torch.zeros(24)
    assert "cls.predictions.decoder.weight" in state
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same(BERTForMaskedLM.from_pretrained(tmp_path).double(), theirs.double())
    state["cls.predictions.decoder.weight"] = torch.ones(50, 24)
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is not the embedding"):
        BERTForMaskedLM.from_pretrained(tmp_path)


def test_checkpointed_activations_change_nothing(tmp_path):
    reference("Bert").save_pretrained(tmp_path)
    x, mask = tokens()
    found = []
    for again in (False, True):
        net = BERT.from_pretrained(tmp_path, dropout=0.0, attention_dropout=0.0, activation_checkpointing=again)
        found.append(gradients(net.double().train(), net(x, mask.sum(1))))
    assert all(torch.equal(grad, found[1][name]) for name, grad in found[0].items())
