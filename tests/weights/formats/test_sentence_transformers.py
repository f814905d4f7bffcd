"""Folders of sentence-transformers, in their old and new form, give its vectors, or one line says what is missing."""

import json
from pathlib import Path

import pytest
import torch

from tests import fake_data
from zoo.errors import UserError
from zoo.models import BERTEmbedder

TEXTS = ["the film was good", "a bad , bad meal", "Not A Good Book at all " * 20]


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return fake_data.bert_folder(tmp_path / "bert", TEXTS)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_folders_saved_today_give_the_same_vectors(encoder, pooling, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import sentence_transformer as st
    from sentence_transformers.base.modules import Transformer

    first = Transformer(str(encoder), max_seq_length=12)
    theirs = SentenceTransformer(
        modules=[first, st.modules.Pooling(16, pooling)],
        prompts={"note": "bad film "},
        default_prompt_name="note",
        device="cpu",
    )
    theirs.save(str(tmp_path / "saved"))
    ours = BERTEmbedder.from_pretrained(tmp_path / "saved")
    assert (ours.pooling, ours.normalize, ours.max_length, ours.prompt) == (pooling, False, 12, "bad film ")
    assert torch.allclose(ours.encode(TEXTS), theirs.encode(TEXTS, convert_to_tensor=True), atol=1e-5)


def test_the_length_of_the_tokenizer_holds_where_no_other_is_stated(encoder):
    path = encoder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model_max_length": 7}))
    assert BERTEmbedder.from_pretrained(encoder).max_length == 7
    path.write_text(json.dumps({**config, "model_max_length": 10**30}))
    assert BERTEmbedder.from_pretrained(encoder).max_length == 64, "the positions"
    (encoder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9, "do_lower_case": True}))
    embedder = BERTEmbedder.from_pretrained(encoder)
    assert (embedder.max_length, embedder.lowercase) == (9, True)
    assert torch.equal(embedder.encode(["THE Film"]), embedder.encode(["the film"]))


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "the pooling max, which BERTEmbedder does not support"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}, "the pooling mean and cls"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
            "the pooling max and mean",
        ),
        ("1_Pooling/config.json", {"pooling_mode_lasttoken": True}, "the pooling lasttoken"),
        ("1_Pooling/config.json", ["mean"], "holds a list, not a dict"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task=fill-mask"),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
            "pools the pooler_output",
        ),
        ("modules.json", [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}], "models.Dense"),
    ],
)
def test_what_would_give_other_vectors_is_one_line(encoder, file, content, reason):
    (encoder / file).parent.mkdir(exist_ok=True)
    (encoder / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=reason) as caught:
        BERTEmbedder.from_pretrained(encoder)
    assert "\n" not in str(caught.value)
