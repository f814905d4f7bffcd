"""Nobody waits for the device: tensors of the meta device have no values, so whatever asks for one fails."""

import copy

import lightning as L
import pytest
import torch
from torch import nn

from zoo.layers.decoding import Generated
from zoo.models import GPTLanguageModel
from zoo.tasks import Classifier, LanguageModel, MaskedLanguageModel, Translator
from zoo.tasks.running_mean import RunningMean, quotient
from zoo.tasks.tagging import Tagger

V, BLOCK = 11, 8
WEIGHTED = nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2.0, V))


class Embed(nn.Module):
    """Logits of each token by itself, whatever else comes along."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(V, V)

    def forward(self, x, *more):
        return self.table(x)

    def generate(self, src, *more, **options):
        return Generated(src, torch.zeros(len(src)))


def language_model(loss=None) -> LanguageModel:
    return GPTLanguageModel(dim=16, depth=1, heads=2, vocab_size=V, block_size=BLOCK, loss=loss)


def translator(loss=None) -> Translator:
    facts = {"pad_id": 0, "bos_id": 2, "eos_id": 3, "max_new_tokens": BLOCK}
    return Translator(Embed(), tgt_vocab_size=V, loss=loss, **facts)


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of tokens and what is asked for: 11 tokens."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randint(V, (2, 2, BLOCK), generator=generator)
    y[1, 3:] = -100
    return x, y


@pytest.mark.parametrize("loss", [None, WEIGHTED], ids=["plain", "weighted"])
@pytest.mark.parametrize("make", [language_model, translator])
def test_a_step_of_training_asks_for_no_value(make, loss):
    (x, y), module = tokens(), make(copy.deepcopy(loss)).to("meta")
    inputs = (x.to("meta"), x.to("meta")) if make is translator else x.to("meta")
    batch = (inputs, y.to("meta"))
    with pytest.raises(RuntimeError, match="meta"):
        int(y.to("meta").sum())
    mean, n = module.step(batch, "train"), module.num_items(batch)
    for _ in range(2):
        module.log_mean("train", n, loss=mean)
    (mean * n).backward()
    factor = quotient(2, n + n, torch.float32)
    torch._foreach_mul_([p.grad for p in module.parameters() if p.grad is not None], factor)
    assert {t.device.type for t in (mean, n, factor, *module._running_means["train"].sums.values())} == {"meta"}


@pytest.mark.parametrize("make", [language_model, translator, lambda loss=None: MaskedLanguageModel(Embed(), loss=loss),
                                  lambda loss=None: Tagger(Embed(), num_classes=V, loss=loss)],
                         ids=["language", "translation", "masked", "tagging"])  # fmt: skip
@pytest.mark.parametrize("skipped", [None, 5])
def test_what_is_counted_is_what_the_loss_divides_by(make, skipped):
    """Padding counts for nothing, whatever else the loss skips, and class weights as what they are."""
    (x, y), kept = tokens(), tokens()[1] >= 0
    assert int(kept.sum()) == 11
    assert int(make().num_items((x, y))) == 11
    weight = WEIGHTED.weight
    options = {} if skipped is None else {"ignore_index": skipped}
    if skipped is not None:
        y[0, :2] = skipped
        kept = (y >= 0) & (y != skipped)
        assert int(make(nn.CrossEntropyLoss(**options)).num_items((x, y))) == int(kept.sum()) < 11
    weighted = make(nn.CrossEntropyLoss(weight=weight.clone(), **options))
    assert float(weighted.num_items((x, y))) == pytest.approx(float(weight[y[kept]].sum()))


def test_class_weights_of_a_classifier_are_not_waited_for():
    module = Classifier(nn.Linear(3, V), num_classes=V, loss=copy.deepcopy(WEIGHTED)).to("meta")
    assert module.num_items((torch.zeros(5, 3, device="meta"), torch.zeros(5, dtype=torch.long, device="meta"))).is_meta


def trainer() -> L.Trainer:
    return L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")


def test_means_of_numbers_and_tensors_are_the_same():
    values, counts = [1.5, -2.0, 4.0], [3, 1, 6]
    meters = RunningMean(), RunningMean()
    for value, n in zip(values, counts, strict=True):
        both = {"a": torch.tensor(value), "b": torch.tensor(2 * value)}
        meters[0].update(n, both)
        meters[1].update(torch.tensor(n), both)
    right = sum(v * n for v, n in zip(values, counts, strict=True)) / sum(counts)
    for meter in meters:
        found = meter.compute(trainer())
        assert (float(found["a"]), float(found["b"])) == pytest.approx((right, 2 * right))


def test_sums_of_a_checkpoint_go_on_where_the_batches_are():
    """A checkpoint is read to the CPU, and what it says of an epoch begun is no in-place matter."""
    meter = RunningMean()
    meter.update(torch.tensor(3), {"loss": torch.tensor(2.0)})
    state = meter.state_dict()
    again = RunningMean(**state)
    again.update(torch.ones((), dtype=torch.long, device="meta"), {"loss": torch.ones((), device="meta")})
    assert again.sums["loss"].is_meta
    assert again.counts["loss"].is_meta
    assert (float(state["sums"]["loss"]), int(state["counts"]["loss"])) == (6.0, 3)
    meter.update(torch.tensor(1), {"loss": torch.tensor(6.0)})
    assert (float(state["sums"]["loss"]), int(state["counts"]["loss"])) == (6.0, 3), "a checkpoint is a copy"


def test_factors():
    assert quotient(3, 12.0, torch.float32) == 0.25
    assert quotient(3, 0.0, torch.float32) == 0.0
    exact = quotient(2, torch.tensor(7), torch.float64)
    assert (exact.dtype, float(exact)) == (torch.float64, 2 / 7)
    assert float(quotient(2, torch.tensor(0), torch.float32)) == 0.0
    assert quotient(2, torch.tensor(7), torch.bfloat16) == pytest.approx(2 / 7, rel=1e-7)


def test_a_window_in_which_nothing_is_asked_for_changes_nothing(tmp_path):
    x = torch.randint(V, (4, 2, BLOCK), generator=torch.Generator().manual_seed(0))
    nothing = torch.full((4, 2, BLOCK), -100)
    found = []
    for y in (nothing, x):
        torch.manual_seed(0)
        module = Tagger(Embed(), num_classes=V, optimizer=torch.optim.SGD, lr=1.0)
        before = module.net.table.weight.detach().clone()
        runner = L.Trainer(accelerator="cpu", max_epochs=1, accumulate_grad_batches=2, default_root_dir=tmp_path,
                           logger=False, enable_checkpointing=False, enable_progress_bar=False,
                           enable_model_summary=False)  # fmt: skip
        runner.fit(module, torch.utils.data.DataLoader(list(zip(x, y, strict=True)), batch_size=None))
        found.append(float((module.net.table.weight - before).abs().max()))
    assert found[0] == 0.0 < found[1]
