"""Encoder, attention, decoding and search against their definitions: loops, torch's own LSTM, brute force."""

import itertools
import math
import random

import pytest
import torch
from torch import Tensor, nn

from zoo.layers.alignment import AdditiveAttention, DotAttention, Memory
from zoo.layers.decoding import beam_search, greedy_search
from zoo.models import Seq2Seq, Seq2SeqTranslator
from zoo.models.seq2seq import teacher_forcing_ratio

KINDS = ["none", "additive", "dot"]
kinds = pytest.mark.parametrize("attention", KINDS)
TOKENS, BOS, EOS = 11, 2, 3


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(attention: str = "dot", dim: int = 12, tokens: int = TOKENS, **kwargs) -> Seq2Seq:
    net = Seq2Seq(tokens, tokens, 0, dim, 8, attention=attention, **kwargs)
    for p in net.parameters():  # far from zero, so that nothing is equal by smallness
        nn.init.normal_(p, std=0.5)
    return net


def sources(lengths: list[int], tokens: int = TOKENS) -> Tensor:
    rows = [torch.randint(4, tokens, (n,)) for n in lengths]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def grads(net: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad], allow_unused=True))


def close(a, b, bound: float = 1e-10) -> None:
    for x, y in zip(a, b, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x, y, rtol=bound, atol=bound)


# Encoder --------------------------------------------------------------------------------------------------------------


class OfTheNotes(nn.Module):
    def __init__(self, vocab_size, embed_dim, hidden_dim):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, embed_dim)
        self.encoder = nn.LSTM(embed_dim, hidden_dim, batch_first=True)
        self.decoder = nn.LSTM(embed_dim, hidden_dim, batch_first=True)
        self.fc_out = nn.Linear(hidden_dim, vocab_size)

    def forward(self, src, tgt):
        _, (h, c) = self.encoder(self.embed(src))
        out, _ = self.decoder(self.embed(tgt), (h, c))
        return self.fc_out(out)


def test_equals_the_network_of_the_notes_where_nothing_ispadded():
    ours, notes = make("none"), OfTheNotes(TOKENS, 8, 12)
    pairs = {"encoder": ours.encoder.rnn, "decoder": ours.decoder.rnn, "fc_out": ours.decoder.out}
    for name, part in pairs.items():
        getattr(notes, name).load_state_dict(part.state_dict())
    notes.embed.load_state_dict(ours.decoder.embedding.state_dict())
    ours.encoder.input.embedding.load_state_dict(ours.decoder.embedding.state_dict())
    src, tgt = sources([7] * 4), sources([5] * 4)
    weight = torch.randn(4, 5, TOKENS)
    a, b = ours(src, tgt), notes(src, tgt)
    close([a], [b])
    for name, part in pairs.items():
        close(
            grads(part, (ours(src, tgt) * weight).sum()), grads(getattr(notes, name), (notes(src, tgt) * weight).sum())
        )


def test_recurrent_initialisation_by_option():
    net = Seq2Seq(9, 9, 0, 6, init_recurrent=True)
    for rnn in (net.encoder.rnn, net.decoder.rnn):
        eye = rnn.weight_hh_l0[:6] @ rnn.weight_hh_l0[:6].T
        close([eye], [torch.eye(6)])
        assert rnn.bias_ih_l0.tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 12


# Attention and decoder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [DotAttention, AdditiveAttention])
def test_attention_is_a_weighted_mean_of_each_sequence(cls):
    attention = cls(*([6] if cls is AdditiveAttention else []))
    states, query, lengths = torch.randn(3, 5, 6), torch.randn(3, 2, 6), [5, 1, 3]
    padding = torch.arange(5) >= torch.tensor(lengths).unsqueeze(1)
    context, weights = attention(query, Memory(states, attention.key(states), padding))
    for b, t in itertools.product(range(3), range(2)):
        scores = []
        for state in states[b, : lengths[b]]:
            if cls is DotAttention:
                scores.append(sum(q * s for q, s in zip(query[b, t], state, strict=True)))
            else:
                hidden = attention.query.weight @ query[b, t] + attention.query.bias + attention.key.weight @ state
                scores.append((attention.energy.weight[0] * hidden.tanh()).sum())
        total = sum(math.exp(float(score.detach())) for score in scores)
        shares = [math.exp(float(score.detach())) / total for score in scores]
        close([weights[b, t]], [torch.tensor(shares + [0.0] * (5 - lengths[b]))])
        close([context[b, t]], [sum(w * s for w, s in zip(shares, states[b, : lengths[b]], strict=True))])


@kinds
@pytest.mark.parametrize("depth", [1, 2])
def test_whole_target_in_one_call_equals_step_by_step(attention, depth):
    net, src, tgt = make(attention, depth=depth, bidirectional=True), sources([6, 2, 4]), sources([5, 3, 5])
    weight = torch.randn(3, 5, TOKENS)
    whole = net(src, tgt)
    states, state, lengths = net.encoder(src)
    memory, steps = net.decoder.build_memory(states, lengths), []
    for t in range(5):
        logits, state, _ = net.decoder(tgt[:, t : t + 1], state, memory)
        steps.append(logits)
    stepped = torch.cat(steps, 1)
    close([whole, *grads(net, (whole * weight).sum())], [stepped, *grads(net, (stepped * weight).sum())])


@kinds
def test_one_call_of_the_lstm_where_the_kind_allows(attention):
    net, calls = make(attention), []
    net.decoder.rnn.register_forward_hook(lambda *_: calls.append(1))
    net(sources([6, 2]), sources([5, 5]))
    assert len(calls) == (5 if attention == "additive" else 1)


@kinds
def test_no_logit_sees_later_tokens_of_the_target(attention):
    net, src, tgt = make(attention, bidirectional=True), sources([4, 6]), sources([7, 7])
    for t in range(1, 7):
        other = tgt.clone()
        other[:, t:] = 4 + (other[:, t:] - 3) % (TOKENS - 4)
        same = (net(src, tgt) == net(src, other)).flatten(2).all(2)
        assert same[:, :t].all()
        assert not same[:, t].any()


@kinds
@pytest.mark.parametrize("two_way", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_padding_and_order_change_nothing(attention, two_way, beams):
    net = make(attention, bidirectional=two_way, depth=2).eval()
    src, tgt, order = sources([6, 2, 4, 5]), sources([5, 5, 3, 4]), torch.tensor([2, 0, 3, 1])
    close([net(src, tgt)[order]], [net(src[order], tgt[order])])
    wider = torch.cat([src, torch.zeros(4, 3, dtype=torch.long)], 1)
    close([net(src, tgt)], [net(wider, tgt)])
    lengths = torch.tensor([6, 2, 4, 5])
    garbage = wider.masked_fill(torch.arange(9) >= lengths.unsqueeze(1), 7)
    close([net(src, tgt)], [net(garbage, tgt, lengths)])
    settings = {"bos_id": BOS, "eos_id": EOS, "max_new_tokens": 9, "num_beams": beams}
    together, turned = net.generate(src, **settings), net.generate(wider[order], **settings)
    assert torch.equal(together.tokens[order], turned.tokens)
    close([together.scores[order]], [turned.scores])
    for i, n in enumerate(lengths.tolist()):
        alone = net.generate(src[i : i + 1, :n], **settings)
        own = together.tokens[i, : alone.tokens.shape[1]]
        assert torch.equal(own, alone.tokens[0])
        assert (together.tokens[i, len(own) :] == 0).all()
        close([alone.scores[0]], [together.scores[i]])


# Search ---------------------------------------------------------------------------------------------------------------


def likely_to_end(net: Seq2Seq, bias: float = 1.0) -> Seq2Seq:
    """Sharper weights, so that translations differ, and this much more for the end."""
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)
        net.decoder.out.bias[EOS] += bias
    return net.eval()


@kinds
def test_greedy_is_the_argmax_until_the_end(attention):
    torch.manual_seed({"none": 2, "additive": 3, "dot": 0}[attention])
    net, src, stop = likely_to_end(make(attention)), sources([6, 2, 4, 5, 3, 6, 1, 2]), 12
    found = net.generate(src, BOS, EOS, stop)
    lengths = set()
    for i in range(len(src)):
        tokens, total = [BOS], 0.0
        while len(tokens) <= stop and tokens[-1] != EOS:
            scores = net(src[i : i + 1], torch.tensor([tokens])).detach()[0, -1].log_softmax(0)
            tokens.append(1 + int(scores[1:].argmax()))  # padding is no answer
            total += float(scores[tokens[-1]])
        own = tokens[1:]
        lengths.add(len(own))
        assert found.tokens[i].tolist() == own + [0] * (found.tokens.shape[1] - len(own))
        assert float(found.scores[i]) == pytest.approx(total / len(own))
    assert len(lengths) > 2, "some end early, some late"


def test_search_stops_when_all_have_ended():
    net, src, calls = likely_to_end(make(), 100.0), sources([6, 2]), []
    net.decoder.register_forward_hook(lambda *_: calls.append(1))
    assert net.generate(src, BOS, EOS, 50).tokens.tolist() == [[EOS], [EOS]]
    assert len(calls) == 1
    calls.clear()
    assert net.generate(src, BOS, EOS, 50, num_beams=2).tokens.tolist() == [[EOS], [EOS]]
    assert len(calls) < 5


@kinds
def test_beam_of_width_1_equals_greedy(attention):
    net, src = likely_to_end(make(attention), 1.0), sources([6, 2, 4, 5, 3, 6, 1, 2])
    states, state, lengths = net.encoder(src)
    start = (state, net.decoder.build_memory(states, lengths))
    first = torch.full((8,), BOS)
    greedy = greedy_search(net._step, start, first, EOS, 0, 12)
    beam = beam_search(net._step, start, first, reorder, EOS, 0, 12, 1, early_stopping=True)
    assert torch.equal(greedy.tokens, beam.tokens)
    close([greedy.scores], [beam.scores])
    ends = (greedy.tokens == EOS).any(1)
    assert ends.any()


def reorder(state, rows):
    (h, c), memory = state
    return (h[:, rows], c[:, rows]), memory


@pytest.mark.parametrize(
    ("attention", "penalty"), [("none", 1.0), ("additive", 0.7), ("dot", -1.0), ("dot", 0.0), ("dot", 3.0)]
)
def test_wide_beam_finds_what_brute_force_finds(attention, penalty):
    tokens, longest, best = 6, 3, []
    net, src = make(attention, tokens=tokens).eval(), sources([5, 2, 3], tokens)
    everything = [
        s for n in range(1, longest + 1) for s in itertools.product(range(1, tokens), repeat=n)
        if EOS not in s[:-1] and (s[-1] == EOS or n == longest)
    ]  # fmt: skip
    with torch.no_grad():
        for row in src:
            own, scored = row[row != 0].unsqueeze(0), []
            for s in everything:
                logits = net(own, torch.tensor([[BOS, *s[:-1]]]))[0].log_softmax(1)
                scored.append((float(logits[range(len(s)), list(s)].sum()) / len(s) ** penalty, s))
            best.append(max(scored))
    settings = {"length_penalty": penalty, "early_stopping": "never"}
    found = net.generate(src, BOS, EOS, longest, num_beams=tokens**longest, **settings)
    assert [tuple(t for t in row if t) for row in found.tokens.tolist()] == [s for _, s in best]
    close([found.scores], [torch.tensor([score for score, _ in best])])


def test_length_penalty_prefers_long_or_short():
    torch.manual_seed(3)
    net, src = likely_to_end(make("additive")), sources([6, 2, 4, 5, 3, 6, 1, 2])
    found = [net.generate(src, BOS, EOS, 15, num_beams=5, length_penalty=p).tokens for p in (-2.0, 0.0, 2.0)]
    lengths = [int((tokens != 0).sum()) for tokens in found]
    assert lengths[0] < lengths[1] < lengths[2]


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("penalty", [-0.5, 0.0, 1.0, 2.0])
def test_beam_search_equals_that_of_transformers(early_stopping, penalty, table_model):
    """The next token by the last two, so that beams with the same last token differ."""
    model, table, rows = table_model
    settings = {"num_beams": 3, "length_penalty": penalty, "early_stopping": early_stopping}
    prompts = torch.tensor([[BOS, i] for i in range(4, 4 + rows)])
    peer = model.generate(
        prompts, max_new_tokens=8, do_sample=False, eos_token_id=EOS, pad_token_id=0, suppress_tokens=[0],
        return_dict_in_generate=True, output_scores=True, **settings,
    )  # fmt: skip

    def step(token, before):
        return table[before, token], token

    ours = beam_search(step, torch.full((rows * 3,), BOS), prompts[:, 1], lambda s, i: s[i], EOS, 0, 8, 3,
                       length_penalty=penalty, early_stopping=early_stopping)  # fmt: skip
    cut = [row[: [*row, EOS].index(EOS) + 1] for row in peer.sequences[:, 2:].tolist()]  # it pads with the end
    assert cut == [[token for token in row if token] for row in ours.tokens.tolist()]
    close([peer.sequences_scores.double()], [ours.scores.double()], 1e-5)
    assert len({tuple(row) for row in ours.tokens.tolist()}) > 5


@pytest.fixture(scope="module")
def table_model():
    from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

    tokens, rows = 24, 20
    table = torch.randn(tokens, tokens, tokens, generator=torch.Generator().manual_seed(3), dtype=torch.float32) * 2
    table[:, :, EOS] += 1.5

    class Table(PreTrainedModel, GenerationMixin):
        config_class = PretrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.unused = nn.Linear(1, 1, dtype=torch.float32)
            self.generation_config = GenerationConfig()

        def prepare_inputs_for_generation(self, input_ids, **_):
            return {"input_ids": input_ids}

        def forward(self, input_ids, **_):
            return CausalLMOutput(logits=table[input_ids[:, -2], input_ids[:, -1]].unsqueeze(1))

    return Table(PretrainedConfig(vocab_size=tokens, num_hidden_layers=1)).eval(), table, rows


def test_generate_names_what_is_wrong():
    net = make()
    with pytest.raises(ValueError, match="num_beams and max_new_tokens must be at least 1, got num_beams=0"):
        net.generate(sources([3]), BOS, EOS, 5, num_beams=0)
    with pytest.raises(ValueError, match="sequence 1 of the batch is empty"):
        net.generate(torch.tensor([[5, 6], [0, 0]]), BOS, EOS, 5)


# Teacher forcing ------------------------------------------------------------------------------------------------------


def test_schedules():
    line = [teacher_forcing_ratio(i, "linear", 0.9, 0.1, 8) for i in (0, 2, 8, 100)]
    assert line == pytest.approx([0.9, 0.7, 0.1, 0.1])
    assert [teacher_forcing_ratio(i, "constant", 0.6) for i in (0, 10**6)] == [0.6, 0.6]
    curve = [teacher_forcing_ratio(i, "inverse_sigmoid", 1.0, 0.0, 1000) for i in range(0, 1001, 100)]
    assert curve == sorted(curve, reverse=True)
    assert curve[5] == pytest.approx(0.5)
    k = 1 / (1 - curve[0]) - 1  # at step 0 it is k / (k + 1)
    assert curve[3] == pytest.approx(k / (k + math.exp(300 / k)))
    for steps in (1, 2, 7, 10**7):
        ends = [teacher_forcing_ratio(i, "inverse_sigmoid", 1.0, 0.0, steps) for i in (0, steps, steps + 1)]
        assert ends[0] + ends[1] == pytest.approx(1)
        assert ends[0] > 0.5 > ends[1] == ends[2]


@kinds
def test_without_teacher_the_decoder_eats_its_own_words(attention):
    net, src, tgt = make(attention), sources([6, 2, 4]), sources([5, 5, 5])
    logits = net(src, tgt, teacher_forcing=0.0)
    eaten = torch.cat([tgt[:, :1], logits.argmax(2)[:, :-1]], 1)
    assert not torch.equal(eaten, tgt)
    close([logits], [net(src, eaten)])
    assert torch.equal(net.eval()(src, tgt, teacher_forcing=0.0), net(src, tgt)), "in training only"


def test_teacher_gives_its_share_of_the_tokens():
    net, src, tgt = make("none"), sources([3] * 400), torch.randint(4, TOKENS, (400, 12))
    seen = []
    net.decoder.embedding.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    logits = net(src, tgt, teacher_forcing=0.7)
    given, own = tgt[:, 1:], logits.argmax(2)[:, :-1]
    differs = given != own
    eaten = torch.cat(seen, 1)[:, 1:]
    assert ((eaten == given) | (eaten == own)).all()
    assert float((eaten == given)[differs].double().mean()) == pytest.approx(0.7, abs=0.03)
    mixed = (eaten == given).double().mean(1)
    assert float(mixed.std()) > 0, "drawn for each sequence"


def module(**kwargs) -> Seq2SeqTranslator:
    facts = {"src_vocab_size": 9, "tgt_vocab_size": 9, "pad_id": 0, "bos_id": 2, "eos_id": 3, "max_new_tokens": 5}
    return Seq2SeqTranslator(**{"dim": 8, "embed_dim": 4, **facts, **kwargs})


def test_a_resumed_run_forces_as_if_never_stopped(tmp_path):
    """What the network is given is a function of the step, and of what the run draws at that step."""
    import lightning as L
    from torch.utils.data import DataLoader

    from zoo.callbacks import DeterministicSteps

    src, tgt = sources([5] * 12, 9), sources([4] * 12, 9)
    data = [((src, tgt), tgt)]
    shares: list[float] = []

    def fit(steps, ckpt=None):
        torch.manual_seed(1)
        m = module(teacher_forcing_schedule="linear", teacher_forcing=1.0, teacher_forcing_end=0.2,
                   teacher_forcing_steps=6).double()  # fmt: skip
        m.net.register_forward_pre_hook(lambda _, args: shares.append(args[3]))
        trainer = L.Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
                            enable_progress_bar=False, enable_model_summary=False, callbacks=[DeterministicSteps()],
                            default_root_dir=tmp_path)  # fmt: skip
        trainer.fit(m, DataLoader(data, batch_size=None), ckpt_path=ckpt, weights_only=True if ckpt else None)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return m.state_dict()

    whole = fit(6)
    assert shares == pytest.approx([1 - 0.8 * i / 6 for i in range(6)])
    shares.clear()
    fit(3)
    resumed = fit(6, tmp_path / "3.ckpt")
    assert shares == pytest.approx([1 - 0.8 * i / 6 for i in range(6)])
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 7, "bidirectional": True}, "dim must be even, as each direction .* has half of it: got 7"),
        ({"attention": "self"}, "attention must be none, additive, dot, got 'self'"),
        ({"teacher_forcing": 1.5}, "teacher_forcing must be a probability from 0 to 1, got 1.5"),
        ({"teacher_forcing_end": -1}, "teacher_forcing_end must be a probability"),
        ({"teacher_forcing_steps": 0}, "teacher_forcing_steps must be at least 1, got 0"),
        ({"src_vocab_size": None}, "Seq2SeqTranslator needs src_vocab_size"),
        ({"bos_id": None}, "Seq2SeqTranslator needs bos_id"),
        ({"max_new_tokens": 0}, "max_new_tokens and num_beams must be at least 1"),
    ],
)
def test_mistakes_are_told_in_a_line(options, words):
    with pytest.raises(ValueError, match=words):
        module(**{"dim": 8, **options})


@pytest.mark.slow
def test_learns_to_turn_a_sequence_around():
    """Attention or the last state carries the source into the target."""
    torch.set_default_dtype(torch.float32)
    rng = random.Random(0)
    rows = [[rng.randint(4, 8) for _ in range(rng.randint(1, 6))] for _ in range(256)]
    src = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    whole = nn.utils.rnn.pad_sequence([torch.tensor([BOS, *row[::-1], EOS]) for row in rows], batch_first=True)
    labels = whole[:, 1:].masked_fill(whole[:, 1:] == 0, -100)
    m = Seq2SeqTranslator(dim=32, embed_dim=16, attention="additive", src_vocab_size=9, tgt_vocab_size=9, pad_id=0,
                          bos_id=BOS, eos_id=EOS, max_new_tokens=10)  # fmt: skip
    optimizer = torch.optim.Adam(m.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        m.step(((src, whole[:, :-1]), labels), "train").backward()
        optimizer.step()
    found = m.eval().generate(src).tokens
    right = [row[: row.index(EOS)] == own[::-1] for row, own in zip(found.tolist(), rows, strict=True) if EOS in row]
    assert sum(right) / len(rows) > 0.95
