"""Drawing and writing on: against transformers, against probabilities, and with and without a cache."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.generation import logits_process as theirs

from zoo.models import GPT
from zoo.tasks import generation, token_sampling
from zoo.tasks.generation import TextStream, generate, window_start
from zoo.tasks.token_sampling import SamplingConfig
from zoo.text.tokenizer import Tokenizer

VOCAB, BLOCK = 11, 12
PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3, 5]]
OPTIONS = {
    "greedy": SamplingConfig(temperature=0),
    "plain": SamplingConfig(),
    "all": SamplingConfig(0.7, top_k=5, top_p=0.9, min_p=0.05, repetition_penalty=1.3),
}


def net(positions="learned", dtype=torch.float64):
    torch.manual_seed(0)
    found = GPT(VOCAB, BLOCK, dim=16, depth=2, heads=2, positions=positions, tied=False).to(dtype).eval()
    for parameter in found.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)  # so that what was before matters
    return found


# Drawing --------------------------------------------------------------------------------------------------------------


PROCESSORS = {
    "penalty": (SamplingConfig(repetition_penalty=1.7), [theirs.RepetitionPenaltyLogitsProcessor(1.7)]),
    "reward": (SamplingConfig(repetition_penalty=0.6), [theirs.RepetitionPenaltyLogitsProcessor(0.6)]),
    "temperature": (SamplingConfig(0.6), [theirs.TemperatureLogitsWarper(0.6)]),
    "top_k": (SamplingConfig(top_k=7), [theirs.TopKLogitsWarper(7)]),
    "top_k of more than there are": (SamplingConfig(top_k=70), [theirs.TopKLogitsWarper(70)]),
    "top_p": (SamplingConfig(top_p=0.8), [theirs.TopPLogitsWarper(0.8)]),
    "top_p tiny": (SamplingConfig(top_p=1e-6), [theirs.TopPLogitsWarper(1e-6)]),
    "min_p": (SamplingConfig(min_p=0.2), [theirs.MinPLogitsWarper(0.2)]),
    "min_p of 1": (SamplingConfig(min_p=1.0), [theirs.MinPLogitsWarper(1.0)]),
    "all": (
        SamplingConfig(0.8, 20, 0.9, 0.05, 1.2),
        [
            theirs.RepetitionPenaltyLogitsProcessor(1.2),
            theirs.TemperatureLogitsWarper(0.8),
            theirs.TopKLogitsWarper(20),
            theirs.TopPLogitsWarper(0.9),
            theirs.MinPLogitsWarper(0.05),
        ],
    ),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_filters_equal_those_of_transformers(case):
    sampling, processors = PROCESSORS[case]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 50, generator=generator) * 3
    logits[:, 7] = logits[:, 3]  # ties, which some filters keep together
    ids = torch.randint(50, (200, 9), generator=generator)
    seen = torch.zeros(200, 50, dtype=torch.bool).scatter_(1, ids, True)
    expected = theirs.LogitsProcessorList(processors)(ids, logits.clone())
    assert torch.equal(token_sampling.process_logits(logits, sampling, seen), expected)
    assert not torch.equal(expected, logits) or case == "top_k of more than there are"


def test_filters_come_in_the_order_of_transformers():
    """Their generate puts the processors together; a token of an untrained model shows the order."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2)).eval()
    nn.init.normal_(model.transformer.wte.weight, std=1.0)
    ids = torch.tensor([[1, 2, 3]])
    options = {"temperature": 0.7, "top_k": 12, "top_p": 0.9, "min_p": 0.08, "repetition_penalty": 1.4}
    given = {**options, "max_new_tokens": 1, "output_scores": True, "return_dict_in_generate": True}
    out = model.generate(ids, do_sample=True, pad_token_id=0, **given)
    seen = torch.zeros(1, 40, dtype=torch.bool).scatter_(1, ids, True)
    logits = model(ids).logits[:, -1].detach()
    torch.testing.assert_close(token_sampling.process_logits(logits, SamplingConfig(**options), seen), out.scores[0])


LARGE = 3 * token_sampling.LARGE_VOCABULARY + 17  # tokens, which the last part does not have full


@pytest.mark.parametrize("scale", [0.01, 4.0, 8.0])
@pytest.mark.parametrize(
    "sampling", [SamplingConfig(top_p=0.9), SamplingConfig(top_k=40, top_p=0.9), SamplingConfig(top_p=1e-6)]
)
def test_top_p_of_a_large_vocabulary_is_that_of_the_whole_order(sampling, scale, monkeypatch):
    """Whether its part is enough (as where few tokens are probable) or not (as where all are alike)."""
    logits = torch.randn(40, LARGE, generator=torch.Generator().manual_seed(0)) * scale
    logits[::2] = logits[::2].round(decimals=1)  # many alike
    found = [token_sampling.process_logits(row[None], sampling) for row in logits]
    together = token_sampling.process_logits(logits, sampling)
    assert torch.equal(together, torch.cat(found))
    monkeypatch.setattr(token_sampling, "_top_p_threshold", lambda *args: None)
    assert torch.equal(together, token_sampling.process_logits(logits, sampling))
    processors = [theirs.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    processors.append(theirs.TopPLogitsWarper(sampling.top_p))
    expected = theirs.LogitsProcessorList(processors)(torch.zeros(40, 1, dtype=torch.long), logits.clone())
    kept = [found.isfinite().sum(1) for found in (together, expected)]
    assert (kept[0] - kept[1]).abs().max() <= (1 if scale > 1 else 3)  # their sums are in float32
    assert (kept[0] > token_sampling.CANDIDATES).any() == (scale < 1 and sampling.top_p == 0.9)


def test_the_part_of_top_p_is_taken_where_it_may_be_and_only_there():
    logits = torch.randn(8, LARGE, generator=torch.Generator().manual_seed(0)) * 8
    assert token_sampling._top_p_threshold(logits, logits.softmax(1), 0.9) is not None
    for wrong in (logits * 0.01, torch.zeros(1, LARGE), torch.cat([logits, logits[:1] * 0.01])):
        assert token_sampling._top_p_threshold(wrong, wrong.softmax(1), 0.9) is None
    even = torch.full((1, LARGE), -torch.inf)
    even[0, :4] = torch.tensor([2.0, 1.0, 1.0, 0.5])
    weights = even.exp()
    assert token_sampling._top_p_threshold(even, weights / weights.sum(), 0.6) is None, "two alike, one of them kept"
    assert token_sampling._top_p_threshold(even, weights / weights.sum(), 0.8) is not None
    half = torch.full((1, LARGE), -torch.inf)
    half[0, :2] = 0.0
    assert token_sampling._top_p_threshold(half, half.softmax(1), 0.5) is None, "on the edge"


@pytest.mark.parametrize("size", [VOCAB, token_sampling.LARGE_VOCABULARY, token_sampling.LARGE_VOCABULARY + 1, LARGE])
def test_a_number_draws_the_token_in_whose_share_it_falls(size):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, size, generator=generator, dtype=torch.float64) * 3
    logits[:, 3] = -torch.inf
    uniform = torch.rand(300, 1, generator=generator, dtype=torch.float64)
    uniform[:5, 0] = torch.tensor([0.0, 1 - 2**-53, 0.5, 1e-12, 1 - 1e-12], dtype=torch.float64)
    expected = (logits.softmax(1).cumsum(1) <= uniform).sum(1).clamp(max=size - 1)
    assert torch.equal(token_sampling.sample_tokens(logits, uniform), expected)


def test_draws_have_the_probabilities_of_the_softmax():
    n = 10_000
    found = generate(Fixed(), [[0]] * n, 1, SamplingConfig(), BLOCK, cache=False, seed=1)
    counts = torch.bincount(torch.tensor(found).flatten(), minlength=VOCAB).double()
    expected = Fixed.logits.double().softmax(0) * n
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 29.6, f"{chi2:.1f}: by chance in one of 1,000 for 10 degrees of freedom"
    # and those of one row, drawn one after the other
    (row,) = generate(Fixed(), [[0]], n, SamplingConfig(), BLOCK, cache=False, seed=2)
    counts = torch.bincount(torch.tensor(row), minlength=VOCAB).double()
    assert ((counts - expected) ** 2 / expected).sum() < 29.6


def test_draws_after_filters_have_their_probabilities():
    sampling = SamplingConfig(temperature=0.8, top_k=6, top_p=0.9, min_p=0.02)
    found = generate(Fixed(), [[0]] * 10_000, 1, sampling, BLOCK, cache=False, seed=3)
    counts = torch.bincount(torch.tensor(found).flatten(), minlength=VOCAB).double()
    expected = token_sampling.process_logits(Fixed.logits[None].double(), sampling)[0].softmax(0) * 10_000
    kept = expected > 0
    assert 2 < kept.sum() < 7
    assert counts[~kept].sum() == 0
    assert ((counts - expected)[kept] ** 2 / expected[kept]).sum() < 20.5  # 1 in 1,000 for 5 degrees of freedom


def test_a_number_at_the_very_end_draws_a_token_that_can_be():
    logits = torch.tensor([[0.3, 1.0, -torch.inf, -torch.inf]])
    for uniform in (0.0, 1 - 2**-53):
        assert token_sampling.sample_tokens(logits, torch.tensor([[uniform]], dtype=torch.float64)).item() == int(
            uniform > 0.5
        )


class Fixed(nn.Module):
    """The same logits whatever was before."""

    logits = torch.linspace(-1.5, 1.5, VOCAB)

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(1))

    def forward(self, ids):
        return self.logits.expand(*ids.shape, -1)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"temperature": wrong} for wrong in (-1, math.nan, math.inf)),
        *({"top_p": wrong} for wrong in (0.0, 1.1)),
        {"top_k": 0},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
    ],
)
def test_a_wrong_option_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingConfig(**wrong)


# The loop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("options", OPTIONS)
def test_cached_equals_uncached(positions, options):
    """Also where prompts differ in length, and far past the context."""
    model = net(positions)
    texts = [generate(model, PROMPTS, 40, OPTIONS[options], BLOCK, cache=cache) for cache in (True, False)]
    assert texts[0] == texts[1]
    assert [len(text) for text in texts[0]] == [40, 40, 40]
    assert len(set(texts[0][0])) > 2, "a text of one token would prove nothing"


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_cached_logits_are_those_without(positions, monkeypatch):
    model, said = net(positions), []
    original = generation._GenerationState.next_logits

    def spy(self):
        logits = original(self)
        said.append(logits.clone())
        return logits

    monkeypatch.setattr(generation._GenerationState, "next_logits", spy)
    for cache in (True, False):
        generate(model, PROMPTS, 30, SamplingConfig(temperature=0), BLOCK, cache=cache)
    half = len(said) // 2
    for cached, plain in zip(said[:half], said[half:], strict=True):
        torch.testing.assert_close(cached, plain, rtol=0, atol=1e-13)


def test_greedy_equals_transformers(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=48, n_embd=32, n_layer=2, n_head=4)).eval()
    nn.init.normal_(model.transformer.wte.weight, std=0.3)
    model.save_pretrained(tmp_path)
    ours = GPT.from_pretrained(str(tmp_path))
    ids = torch.randint(40, (4, 5))
    for penalty in (1.0, 1.5):
        options = {"max_new_tokens": 40, "repetition_penalty": penalty, "pad_token_id": 0, "eos_token_id": None}
        expected = model.generate(ids, do_sample=False, **options)[:, 5:].tolist()
        sampling = SamplingConfig(temperature=0, repetition_penalty=penalty)
        assert generate(ours, ids.tolist(), 40, sampling, 48) == expected


@pytest.mark.parametrize("options", OPTIONS)
def test_a_row_does_not_depend_on_the_others(options):
    together = generate(net(), PROMPTS, 30, OPTIONS[options], BLOCK, seed=5)
    alone = [generate(net(), [p], 30, OPTIONS[options], BLOCK, seed=5, rows=[i])[0] for i, p in enumerate(PROMPTS)]
    assert together == alone


def test_of_a_long_prompt_the_end_counts():
    long = [i % VOCAB for i in range(40)]
    texts = [generate(net(), [prompt], 20, SamplingConfig(), BLOCK) for prompt in (long, long[-BLOCK:])]
    assert texts[0] == texts[1]


def test_the_window_keeps_the_last_half():
    for block in (1, 2, 7, 8):
        starts = [window_start(n, block) for n in range(1, 50)]
        seen = [n - start for n, start in enumerate(starts, 1)]
        assert starts[:block] == [0] * block
        assert min(seen) >= 1
        assert max(seen) == block
        slides = [n for n, (a, b) in enumerate(pairwise(starts), 2) if b > a]
        assert {n - window_start(n, block) for n in slides} == {block // 2 + 1}, "its last half, and the new token"


def test_a_row_ends_at_the_end_of_text_or_when_told():
    plain = generate(net(), PROMPTS, 30, SamplingConfig(), BLOCK)
    eos = plain[0][6]
    ended = generate(net(), PROMPTS, 30, SamplingConfig(), BLOCK, eos_ids=[eos])
    assert ended == [row[: row.index(eos)] if eos in row else row for row in plain]
    told = []

    def on_token(row, token):
        told.append((row, token))
        return row == 1 and sum(r == 1 for r, _ in told) == 4

    stopped = generate(net(), PROMPTS, 30, SamplingConfig(), BLOCK, on_token=on_token)
    assert stopped == [plain[0], plain[1][:4], plain[2]]
    assert [[t for r, t in told if r == row] for row in range(3)] == stopped


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_rows_that_have_ended_are_computed_no_more(options, cache):
    """And those that go on are as if they had stayed."""
    model, sizes = net(), []
    model.lm_head.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    texts = generate(model, PROMPTS, 30, OPTIONS[options], BLOCK, cache=cache, seed=4)
    told = dict.fromkeys(range(3), 0)
    before = len(sizes)

    def on_token(row, token):
        told[row] += 1
        return told[row] == (20, 4, 25)[row]

    ended = generate(model, PROMPTS, 30, OPTIONS[options], BLOCK, cache=cache, seed=4, on_token=on_token)
    assert ended == [texts[0][:20], texts[1][:4], texts[2][:25]]
    steps = sizes[before:]
    assert steps[:4] == [3] * 4, "the shortest prompt has 1 token"
    assert steps[4:22] == [2] * 18, "that with 3 takes two steps to its first token"
    assert steps[22:] == [1] * 9


def test_of_a_prompt_the_last_logits_alone_are_computed():
    model, shapes = net(), []
    model.lm_head.register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    for cache in (True, False):
        generate(model, [[1, 2, 3, 4]] * 2, 20, SamplingConfig(), BLOCK, cache=cache)
    assert set(shapes) == {(2, 1, VOCAB)}


def test_seeds_decide_and_torch_s_own_numbers_are_left_alone():
    model = net()
    before = torch.get_rng_state()
    texts = [generate(model, PROMPTS, 20, SamplingConfig(), BLOCK, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0] != generate(model, [PROMPTS[0]] * 2, 20, SamplingConfig(), BLOCK, seed=1)[1], "rows differ"
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_without_a_cache_writes_without_one():
    assert generate(Fixed(), PROMPTS, 5, SamplingConfig(), BLOCK) == generate(
        Fixed(), PROMPTS, 5, SamplingConfig(), BLOCK, cache=False
    )


def test_tokens_without_a_name_are_not_drawn():
    model = Fixed()
    (row,) = generate(model, [[0]], 500, SamplingConfig(), BLOCK, vocab_size=4, cache=False)
    assert set(row) == {0, 1, 2, 3}


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]])
def test_an_empty_prompt_is_refused(prompts):
    with pytest.raises(ValueError, match="a prompt is empty"):
        generate(net(), prompts, 3, SamplingConfig(), BLOCK)


# Text -----------------------------------------------------------------------------------------------------------------


def read(tokenizer, text, stop=(), before=()):
    stream, parts = TextStream(tokenizer, before, stop), []
    for token in tokenizer.encode(text):
        parts.append(stream.push(token))
        if stream.ended:
            break
    return [*parts, stream.finish()], stream.ended


def test_a_stream_tells_characters_when_they_are_whole():
    tokenizer = Tokenizer("bytes")
    parts, _ = read(tokenizer, "aé€𝄞z")
    assert parts == ["a", "", "é", "", "", "€", "", "", "", "𝄞", "z", ""]


def test_half_a_character_at_the_end_is_told_too():
    stream = TextStream(Tokenizer("bytes"))
    assert [stream.push(token) for token in b"a\xe2\x82"] == ["a", "", ""]
    assert stream.finish() == "\ufffd"


def test_a_stream_ends_at_the_first_of_its_stops():
    tokenizer = Tokenizer.train("characters", ["abcdef\n"])
    assert read(tokenizer, "abcdef", stop=["de", "cd"]) == (["a", "b", "", "", ""], True)
    assert read(tokenizer, "abccd", stop=["cd"]) == (["a", "b", "", "c", "", ""], True)
    parts, ended = read(tokenizer, "abab", stop=["abc"])
    assert "".join(parts) == "abab"
    assert not ended


@pytest.mark.parametrize("level", ["characters", "bytes", "words", "bpe"])
def test_a_stream_adds_up_to_the_text(level):
    texts = ["the cat sat on the mat, and the cat was fat", "a naïve café — “quoted”"]
    tokenizer = Tokenizer.train(level, texts, vocab_size=300 if level == "bpe" else None)
    for text in texts:
        parts, _ = read(tokenizer, text)
        assert "".join(parts) == tokenizer.decode(tokenizer.encode(text))
        first, rest = tokenizer.encode(text)[:2], tokenizer.encode(text)[2:]
        stream = TextStream(tokenizer, first)
        continued = "".join(stream.push(token) for token in rest) + stream.finish()
        assert tokenizer.decode(first) + continued == tokenizer.decode([*first, *rest])
